"""A command that has run, and an attention that is none."""

import itertools
import json
import signal

from typer.testing import CliRunner

from relay_hf.cli.app import app

# What these commands run on is tiny: seconds mean nothing, shapes and figures do.
TINY = ("--tiny", "--new", "4")


class Ran:
    """A command that is over: exit code, standard output and error, on lines of 200 columns."""

    def __init__(self, *arguments, stdin=None, columns=200, app=app, name="relay-hf"):
        runner = CliRunner(env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns), "NO_COLOR": "1"})
        done = runner.invoke(app, [str(argument) for argument in arguments], input=stdin, prog_name=name)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        self.code, self.out, self.error = done.exit_code, done.stdout, done.stderr

    @property
    def json(self):
        """The one document on standard output."""
        assert self.code == 0, self.error
        return json.loads(self.out)

    def refuses(self, argument):
        """What a usage error says of an argument; exit code 2, nothing on standard output, no traceback."""
        assert self.code == 2, self.out + self.error
        assert self.out == ""
        said = " ".join(self.error.replace("│", " ").split())
        assert f"Invalid value for '{argument}': " in said
        return said


def wrong(*arguments, **options):
    """A computation of attention that is no such thing, for either path."""
    query, value = arguments[1], arguments[4]
    batch, heads, length, _ = query.shape
    return query.new_ones(batch, length, heads, value.shape[3])


def interrupted_at(call, function):
    """`function`, whose call of that number is interrupted by Ctrl-C; calls are counted from 1."""
    calls = itertools.count(1)

    def counted(*arguments, **options):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    return counted
