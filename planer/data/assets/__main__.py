"""make assets: fetch the real networks and data of assets.yaml, or those that are named."""

from __future__ import annotations

import argparse
import sys

from planer.config.paths import assets_home
from planer.data.assets import fetch, table
from planer.errors import UserError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m planer.data.assets", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(table())} (default: all)")
    names = parser.parse_args().names
    try:
        fetch(names, say=lambda line: print(line, flush=True))
        print(f"Assets are in {assets_home()}")
    except UserError as error:
        sys.exit(f"planer: {' '.join(str(error).split())}")
    except OSError as error:
        place = error.filename or assets_home()
        sys.exit(f"planer: cannot write {place}: {error.strerror}; free space, or set PLANER_ASSETS")
    except KeyboardInterrupt:
        sys.exit("planer: stopped; run it again to go on")
