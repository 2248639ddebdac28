"""Formulations as a user's file might hold them, which answer, hang, crash or exit; see test_compare.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import lipmodel as lm


class LipSDP(lm.Formulation):
    """LipSDP with one multiplier per neuron; the others do something before it."""

    name, norms = "own-lipsdp", {("2", "2")}

    def first(self):
        pass

    def build(self, system, spec):
        self.first()
        m = lm.Model(self.name)
        ball, price = m.ball(system.input, "2")
        form = ball - lm.inner(system.output, system.output)
        for act in system.activations:
            form -= lm.qc.slope_restricted(act, self.multiplier(m, act))
        m.require(form >= 0)
        m.minimize(2 * price, bound="sqrt")
        return m

    def multiplier(self, m, act):
        return m.multiplier(act)


class Loose(LipSDP):
    """Large multipliers in the first layer only: a true bound, far above the product of the norms."""

    name = "loose"

    def multiplier(self, m, act):
        t = m.multiplier(act)
        m.require(t - 1e6 >= 0 if act.name == self.layers[0] else 1e3 - t >= 0)
        return t

    def build(self, system, spec):
        object.__setattr__(self, "layers", [act.name for act in system.activations])
        return super().build(system, spec)


class Hangs(LipSDP):
    """Never ends."""

    name = "hangs"

    def first(self):
        while True:
            time.sleep(60)


class Deaf(Hangs):
    """Never ends, and is deaf to interrupts."""

    name = "deaf"

    def first(self):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().first()


class Raises(LipSDP):
    """Raises an error."""

    name = "raises"

    def first(self):
        raise ZeroDivisionError("by zero")


class Exits(LipSDP):
    """Asks the interpreter to exit."""

    name = "exits"

    def first(self):
        sys.exit(0)


class Leaves(LipSDP):
    """Leaves without a word."""

    name = "leaves"

    def first(self):
        print("goodbye")
        os._exit(0)


class Killed(LipSDP):
    """Is killed, as where memory is short."""

    name = "killed"

    def first(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Greedy(LipSDP):
    """Wants more memory than there is."""

    name = "greedy"

    def first(self):
        raise MemoryError


class Loud(LipSDP):
    """Writes to both streams, from Python and from below it."""

    name = "loud"

    def first(self):
        print("noise from Python")
        print("noise on stderr", file=sys.stderr)
        os.write(1, b"noise from below\n")


class Crowd(LipSDP):
    """A family whose programs never end but for the first, each in a process that writes down its number."""

    name = "crowd"
    folder: str = lm.option("", help="where the numbers are written")

    def first(self):
        global first_process
        if first_process is None:
            first_process = os.getpid()
            time.sleep(0.6)  # long enough for the others to be shared out
        elif first_process != os.getpid():
            (Path(self.folder) / str(os.getpid())).touch()
            time.sleep(600)


first_process = None


class Declines(LipSDP):
    """Refuses the network."""

    name = "declines"

    def first(self):
        raise lm.UsageError("this network is none of mine")
