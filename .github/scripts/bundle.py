"""Model bundles at an address such as s3://bank/model, one folder per commit; the file `current` names the one in use.

bundle.py fetch URL FOLDER     the deployed bundle and its run, into FOLDER; no folder when none is deployed
bundle.py store URL COMMIT     models/main and runs/main, to URL/COMMIT
bundle.py current URL          prints the commit that is deployed, or nothing
bundle.py point URL COMMIT     makes it that commit
bundle.py save FILE URL        one file to URL
bundle.py load URL FILE        and back, if there is one
"""

import sys
from pathlib import Path

from fraudnb.errors import InputError
from fraudnb.fetch import exists, join_location, list_files, read_bytes, store_bytes, store_file


def current(url: str) -> str:
    """The commit whose bundle is deployed at `url`; empty if there is none."""
    place = join_location(url, "current")
    return read_bytes(place).decode().strip() if exists(place) else ""


def store(url: str, commit: str) -> None:
    """Upload the bundle, and of its run what a comparison needs, so that a later model can be held against it."""
    target = join_location(url, commit)
    for path in sorted(Path("models/main").iterdir()):
        store_file(path, join_location(target, f"model/{path.name}"))
    for path in sorted(Path("runs/main").iterdir()):
        if path.suffix == ".ipynb" or path.name in ("scores.parquet", "metrics.json"):
            store_file(path, join_location(target, path.name))


def fetch(url: str, folder: Path) -> None:
    """Download the deployed bundle and its run into `folder`."""
    if not (commit := current(url)):
        return
    source = join_location(url, commit)
    for name in list_files(source):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(read_bytes(join_location(source, name)))
    if not (folder / "model/card.json").exists():
        raise InputError(f"{url}/current names {commit}, but {source} has no model: point it to one that is there.")


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["fetch", url, folder]:
                fetch(url, Path(folder))
            case ["store", url, commit]:
                store(url, commit)
            case ["current", url]:
                print(current(url))
            case ["point", url, commit]:
                store_bytes(f"{commit}\n".encode(), join_location(url, "current"))
            case ["save", file, url]:
                store_file(file, url)
            case ["load", url, file]:
                if exists(url):
                    Path(file).write_bytes(read_bytes(url))
            case _:
                sys.exit(__doc__)
    except InputError as error:
        sys.exit(f"bundle.py: {error}")
