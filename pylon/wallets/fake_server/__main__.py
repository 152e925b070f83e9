"""`python -m pylon.wallets.fake_server`."""

import sys

from pylon.wallets.fake_server.process import main

sys.exit(main())
