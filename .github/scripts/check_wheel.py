"""Checks that a wheel holds the library as git has it, all of it and nothing else, and that the command runs from it.

Usage: python .github/scripts/check_wheel.py dist/fraudnb-0.1.0-py3-none-any.whl
"""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

wheel = Path(sys.argv[1]).resolve()
listed = subprocess.run(["git", "ls-files", "fraudnb"], capture_output=True, text=True, check=True).stdout.split()
with zipfile.ZipFile(wheel) as archive:
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    texts = {
        name.rpartition("/")[2]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name
    }

if names != set(listed):
    sys.exit(f"The wheel lacks {sorted(set(listed) - names)} and has {sorted(names - set(listed))} that git has not.")
settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
settings.read("settings.ini", encoding="utf-8")
for name, text in (
    ("METADATA", f"Version: {settings['DEFAULT']['version']}"),
    ("METADATA", f"Requires-Python: >={settings['DEFAULT']['min_python']}"),
    ("entry_points.txt", settings["DEFAULT"]["console_scripts"].replace("=", " = ")),
    ("entry_points.txt", settings["DEFAULT"]["kernel_provisioners"].replace("=", " = ")),
):
    if text not in texts[name]:
        sys.exit(f"The wheel's {name} does not say {text!r}.")

code = "import sys, fraudnb.cli; print(fraudnb.cli.__file__); fraudnb.cli.main(['--help'])"
env = os.environ | {"PYTHONPATH": str(wheel)}
done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True)
if done.returncode or not done.stdout.startswith(str(wheel)):
    sys.exit(f"The command does not run from the wheel: {done.stdout[:300]} {done.stderr}")
print(f"{wheel.name}: {len(names)} files, the command runs.")
