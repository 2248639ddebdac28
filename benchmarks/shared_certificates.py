"""Every certificate from every accepted network of a collection: verified from its file, and bent until refused.

    python -m benchmarks.shared_certificates FOLDER [--time-limit 20] [--neurons 1700] [--minutes M] [--restart]

FOLDER holds index.csv with the columns `path`, `verdict`, `hidden_units` (rows `accept` are taken, small networks
first). Each is solved with `product` (2:2), `lipsdp-neuron` (2:2) and `geolip` (inf:2), and what was saved is verified
as `lipmodel verify` does it. Then the certificate is bent: its bound a double lower, one field other, one byte of the
network file other; each must be refused. A run goes on where the last one ended. Writes shared_certificates.json
and .md into results.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lipmodel as lm
from lipmodel.result import write_atomically

HERE = Path(__file__).resolve().parent
PROGRAMS = (("product", "2"), ("lipsdp-neuron", "2"), ("geolip", "inf:2"))
BENDS = ("ulp", "field", "byte")
Certificate = dict[str, Any]


def lower_by(certificate: Certificate, doubles: int) -> Certificate:
    """The same proof of a bound that is some doubles lower; so are the members that attain it."""
    bound = float.fromhex(certificate["claim"]["bound"])
    other = copy.deepcopy(certificate)
    # the witness would contradict the bound where the two meet: the proof of the bound is what is to be refused
    other["lower"] = other["claim"]["lower_bound"] = None
    lower = (bound - doubles * math.ulp(math.nextafter(bound, 0.0))).hex()
    other["claim"]["bound"] = other["upper"]["bound"] = lower
    for member in other["upper"].get("members", ()):
        if float.fromhex(member["proof"]["bound"]) == bound:
            member["proof"]["bound"] = lower
    return other


def threshold(path: Any, certificate: Certificate) -> tuple[str, int]:
    """How a lower bound is refused, and by how many doubles it is lower.

    What multipliers prove is one number, so the next lower double is refused. Norms are taken anew by `verify`, in
    rationals, and their product may be some roundings below the bound, so it is tried how many. "" where even one part
    in 10^9 less is accepted.
    """
    steps = [1] if certificate["upper"]["rule"] == "lmi" else [4**k for k in range(12)]
    if float.fromhex(certificate["claim"]["bound"]) == 0.0:
        return "bound 0", 0
    for doubles in steps:
        how = refused(path, lower_by(certificate, doubles))
        if how:
            return how, doubles
    return "", steps[-1]


def _proof(certificate: Certificate) -> Certificate:
    upper: Certificate = certificate["upper"]
    return upper["members"][0]["proof"] if upper["rule"] == "largest" else upper


def _first_number(certificate: Certificate, value: str) -> None:
    proof = _proof(certificate)
    if proof["rule"] != "lmi":
        certificate["claim"]["bound"] = value
    elif len(proof["g"]) == 2 and str(proof["g"][0]).startswith("*"):
        proof["g"][1] = value
    else:
        proof["g"][0] = value


def _hash(certificate: Certificate) -> None:
    digest = certificate["network"]["sha256"]
    certificate["network"]["sha256"] = ("0" if digest[0] != "0" else "1") + digest[1:]


FIELDS: dict[str, Callable[[Certificate], Any]] = {
    "a schema that does not exist": lambda c: c.update(schema="lipmodel/certificate/2"),
    "another semantics": lambda c: c["claim"].update(semantics="float32"),
    "an unknown rule": lambda c: c["upper"].update(rule="trust"),
    "one more key": lambda c: c["upper"].update(note=""),
    "a key less": lambda c: c["claim"].pop("outputs"),
    "a hash that is another": _hash,
    "NaN": lambda c: _first_number(c, "nan"),
    "a negative number": lambda c: _first_number(c, "-0x1.0p-3"),
    "a number in decimals": lambda c: _first_number(c, "0.1"),
    "a list that is longer": lambda c: _proof(c)["t" if "t" in _proof(c) else "spectral"].append("0x1.0p+0"),
    "a bound without a proof": lambda c: c.update(upper=None),
    "a lower bound without a witness": lambda c: (c["claim"].update(lower_bound="0x1.0p-900"), c.update(lower=None)),
    "outputs that are not there": lambda c: c["claim"].update(outputs="1000000000"),
}


def another_byte(path: Path, folder: Path, rng: random.Random) -> Path:
    """A copy of a network file with one bit flipped; where it needs what lies beside it, beside copies of that."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    target = folder / "network"
    shutil.copytree(path.parent, target) if external else target.mkdir()
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    (target / path.name).write_bytes(bytes(data))
    return target / path.name


def refused(path: Path, certificate: Any) -> str:
    """How a certificate is refused; "" where it is accepted, which is a fault. Any other error is raised."""
    try:
        lm.verify(path, certificate)
    except lm.RefusedInput:
        return "network refused"
    except lm.Refuted as error:
        return "refuted: " + str(error)[:60]
    except lm.UsageError as error:
        return "usage: " + str(error)[:60]
    return ""


def program(path: Path, formulation: str, norm: str, limit: float, rng: random.Random) -> dict[str, Any]:
    """One program of one network: solved, saved, verified from the file, bent."""
    row: dict[str, Any] = {"faults": []}
    start = time.perf_counter()
    result = lm.solve(path, formulation, norm=norm, time_limit=limit)
    assert result.certificate is not None
    row |= {"solve": time.perf_counter() - start, "bound": result.bound, "lower": result.lower_bound}
    row |= {"termination": result.termination, "backend": result.backend, "rule": result.certificate["upper"]["rule"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved = folder / "result.json"
        result.save(saved)
        start = time.perf_counter()
        verdict = lm.verify(path, saved)
        row |= {"verify": time.perf_counter() - start, "read_by": verdict.read_by}
        if (verdict.bound, verdict.lower_bound) != (result.bound, result.lower_bound):
            row["faults"].append(f"verified as {verdict.bound!r}, {verdict.lower_bound!r}")
        certificate = json.loads(saved.read_text())["certificate"]
        row["ulp"], row["doubles"] = threshold(path, certificate)
        field, bend = rng.choice(list(FIELDS.items()))
        other = copy.deepcopy(certificate)
        bend(other)
        row["field"] = refused(path, other) and f"{field}: {refused(path, other)}"
        row["byte"] = refused(another_byte(path, folder, rng), certificate)
        row["faults"] += [f"bent by {bend} and accepted" for bend in BENDS if not row[bend]]
    return row


def survey(folder: Path, args: argparse.Namespace, state: dict[str, Any], save: Callable[[], None]) -> None:
    """All programs that are not done yet, small networks first."""
    with (folder / "index.csv").open(newline="") as file:
        listed = [row for row in csv.DictReader(file) if row["verdict"] == "accept" and row["path"].endswith(".onnx")]
    deadline = time.monotonic() + 60.0 * args.minutes
    state["listed"] = len(listed) * len(PROGRAMS)
    for entry in sorted(listed, key=lambda row: (int(row["hidden_units"] or 10**9), row["path"])):
        if time.monotonic() > deadline:
            return
        name = entry["path"]
        for formulation, norm in PROGRAMS:
            key = f"{name} {formulation} {norm}"
            units = int(entry["hidden_units"] or 0)
            if key in state["rows"] or time.monotonic() > deadline:
                continue
            largest = args.neurons if formulation != "product" else args.product
            if units > largest:
                state["skipped"][key] = f"more than {largest} activations"
                continue
            start = time.monotonic()
            try:
                row = program(folder / name, formulation, norm, args.time_limit, random.Random(key))
                row["activations"] = units
                state["rows"][key] = row
            except lm.RefusedInput as error:
                state["skipped"][key] = f"refused: {error.reasons[0]}"
            except lm.LipmodelError as error:
                state["skipped"][key] = f"{type(error).__name__}: {str(error)[:120]}"
            except Exception as error:
                state["rows"][key] = {"faults": [f"{type(error).__name__}: {str(error)[:200]}"], "activations": units}
            state["seconds"] += time.monotonic() - start
            save()
        print(name, f"{len(state['rows'])} programs, {len(faults(state))} faults", flush=True)


def faults(state: dict[str, Any]) -> list[str]:
    return [f"{key}: {fault}" for key, row in state["rows"].items() for fault in row["faults"]]


def report(state: dict[str, Any]) -> str:
    """The state in words and tables."""
    done = {key: row for key, row in state["rows"].items() if "verify" in row}
    readers = Counter(row["read_by"] for row in done.values())
    doubles = Counter(f"{row['rule']}: {row['doubles']}" for row in done.values())
    refusals = Counter(row[bend].split(":")[0] for row in done.values() for bend in ("ulp", "byte"))
    fields = Counter(row["field"].split(":")[0] for row in done.values())
    networks = {key.split(" ")[0] for key in done}
    found = faults(state)
    skipped = state["skipped"]
    left = state["listed"] - len(state["rows"]) - len(skipped)
    lines = [
        "# Certificates of a collection of networks",
        "",
        f"{len(networks)} networks, {len(done)} certificates, each verified from its file and bent three times; "
        f"{state['seconds'] / 60:.0f} minutes (times are those of a clock, beside other work). {len(skipped)} programs "
        f"were left out (listed below), {left} were not reached.",
        "",
        f"**{len(found)} faults.**",
        "",
        *(f"- {fault}" for fault in found[:50]),
        "",
        "By how many doubles the bound had to be lower to be refused (0: it is 0): "
        + ", ".join(f"{name} ({number})" for name, number in sorted(doubles.items()))
        + ".",
        "",
        "A lower bound, and one byte of the network: "
        + ", ".join(f"{name} {number}" for name, number in refusals.most_common())
        + ". One field other: "
        + ", ".join(f"{name} {number}" for name, number in fields.most_common())
        + ".",
        "",
        "Read by: " + ", ".join(f"{name} {number}" for name, number in readers.most_common()) + ".",
        "",
        "| network, program | activations | rule | lower | bound | solve s | verify s | ended | read by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in sorted(done.items()):
        lower = "" if row["lower"] is None else f"{row['lower']:.6g}"
        lines.append(
            f"| {key} | {row['activations']} | {row['rule']} | {lower} | {row['bound']:.8g} | {row['solve']:.2f} | "
            f"{row['verify']:.2f} | {row['termination']} | {row['read_by']} |"
        )
    lines += ["", "Left out:", "", *(f"- {key}: {reason}" for key, reason in sorted(skipped.items()))]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run, and write shared_certificates.json and .md; the exit code is 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--time-limit", type=float, default=20.0, help="seconds for each program")
    parser.add_argument("--neurons", type=int, default=1700, help="activations up to which inequalities are solved")
    parser.add_argument("--product", type=int, default=60_000, help="activations up to which the product is asked for")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--restart", action="store_true", help="forget what was done already")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "shared_certificates.json"
    state: dict[str, Any] = {"rows": {}, "skipped": {}, "seconds": 0.0, "listed": 0}
    if saved.exists() and not args.restart:
        state = json.loads(saved.read_text())

    def save() -> None:
        write_atomically(saved, json.dumps(state, indent=1) + "\n")

    survey(args.folder, args, state, save)
    save()
    write_atomically(args.out / "shared_certificates.md", report(state))
    return 1 if faults(state) else 0


if __name__ == "__main__":
    raise SystemExit(main())
