"""A console that outlives its reader."""

from rich.console import Console

from jaxq.harness.failures import CLOSED_PIPE


class LastingConsole(Console):
    """A console for work that goes on where nobody reads its output any more, as under ``| head``."""

    def on_broken_pipe(self) -> None:
        """Prints nothing more; rich would end the process."""
        self.quiet = True

    def exit_if_unread(self) -> None:
        """Ends the process, after all of its work, with the exit code for a reader that is gone."""
        if self.quiet:
            raise SystemExit(CLOSED_PIPE)
