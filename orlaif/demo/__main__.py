"""``python -m orlaif.demo``."""

from orlaif.stages import stage
from orlaif.status_line import StatusLine

with StatusLine(what="demo").running():
    with stage("loading libraries"):
        from orlaif.demo.demo import main
    main()
