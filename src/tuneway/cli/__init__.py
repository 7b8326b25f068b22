"""The `tuneway` command: an HTTP client of the public API, plus `serve`, `quickstart` and `doctor`.

Results go to stdout, progress and errors to stderr. Nothing heavy is imported before a command needs it, so that
`tuneway --help` answers at once.
"""

import sys


def main() -> None:
    """Runs the command line and exits with a code of `tuneway.cli.exits.Exit`."""
    from tuneway.cli.exits import Failure
    from tuneway.cli.output import report
    from tuneway.cli.root import app
    from tuneway.errors import TunewayError

    try:
        app(prog_name="tuneway")
    except (Failure, TunewayError) as error:
        sys.exit(report(error, as_json="--json" in sys.argv[1:]))
