"""make assets: fetch the real networks and data of assets.yaml, or those that are named."""

from __future__ import annotations

import sys

from planer.data.assets import fetch, home
from planer.errors import UserError

if __name__ == "__main__":
    try:
        fetch(sys.argv[1:], say=lambda line: print(line, flush=True))
        print(f"Assets are in {home()}")
    except UserError as error:
        sys.exit(f"planer: {' '.join(str(error).split())}")
    except OSError as error:
        sys.exit(f"planer: cannot write {error.filename or home()}: {error.strerror}; free space, or set PLANER_ASSETS")
    except KeyboardInterrupt:
        sys.exit("planer: stopped; run it again to go on")
