"""The far end of a `harness.Worker`: makes one object, and calls its methods as lines of JSON ask for."""

import importlib
import json
import os
import sys
import traceback


def main() -> None:
    subject, arguments = sys.argv[1:]
    # Libraries print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    made = None
    for line in sys.stdin:
        method, given = json.loads(line)
        try:
            if made is None:
                module, _, name = subject.partition(":")
                made = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**json.loads(arguments))
            answer = ["done", getattr(made, method)(**given)]
        except Exception:
            answer = ["failed", traceback.format_exc()]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
