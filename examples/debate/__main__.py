"""``python -m examples.debate``."""

import sys

from examples.debate.demo import main

sys.exit(main())
