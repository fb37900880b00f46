"""`farm dispatcher` that looks again after seconds where the farm's own waits half a minute, so that tests need not."""

import sys

from farm.config import load_settings
from farm.dispatcher import acceptance, dispatcher
from farm.dispatcher.process import serve
from farm.logs import set_up

LOOK_AGAIN_SECONDS = 3.0

if __name__ == "__main__":
    acceptance.LOOK_AGAIN_SECONDS = dispatcher.LOOK_AGAIN_SECONDS = LOOK_AGAIN_SECONDS
    settings = load_settings()
    set_up(settings.log_level)
    sys.exit(serve(settings))
