"""Where the seconds of finished runs went: python benchmarks/job_seconds.py RUN_FOLDER ...

From the events of each run: seconds by phase, evaluation and report beside all, and beside the plan.
"""

import argparse
from collections import Counter
from pathlib import Path

from qlora_space.runs import RunFolder, read_events


def seconds_by_phase(run: RunFolder) -> Counter[str]:
    """Between the first event and the last, by the phase that was under way."""
    events, _ = read_events(run.events_file)
    found: Counter[str] = Counter()
    phase, last = "start", events[0].time
    for event in events:
        found[phase] += event.time - last
        last = event.time
        if event.kind == "phase":
            phase = event.name
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    for path in parser.parse_args().runs:
        run = RunFolder(path)
        found, plan = seconds_by_phase(run), run.plan()
        whole, evaluation = found.total(), found["evaluate"] + found["report"]
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.items())
        print(f"{run.name()}: {whole:.1f} s ({parts})")
        print(
            f"  evaluation {evaluation:.1f} s, {evaluation / whole:.0%}; planned {plan.estimate.seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
