"""Package metadata, read from settings.ini, where each fact stands once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="], comment_prefixes=["#"], interpolation=None)
config.read(root / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
ending = "_requirements"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license=settings["license"],
    keywords=settings["keywords"].split(),
    classifiers=settings["classifiers"].splitlines(),
    python_requires=f">={settings['min_python']}",
    packages=[settings["lib_name"]],
    package_data={settings["lib_name"]: ["*.json", "report_site/*", "page_site/*"]},
    install_requires=settings["requirements"].split(),
    extras_require={
        name.removesuffix(ending): needs.split() for name, needs in settings.items() if name.endswith(ending)
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "jupyter_client.kernel_provisioners": settings["kernel_provisioners"].split(),
    },
)
