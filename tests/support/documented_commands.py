"""What the pages tell a reader to type: every line of every `sh` block, and where a test runs it.

    ```sh
    fairlead status     # what comes after a space and a hash is for the reader
    ```

`HERE` are run in one folder, in this order, by `operating/test_documented_commands.py`; `ELSEWHERE`, and
the pages in `WHOLE`, by another test. A command that is in none of them fails `house/test_documents.py`.
"""

from __future__ import annotations

import re

from source_files import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("README.md")),
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Before there is a site: what makes one.
BEFORE = [".venv/bin/fairlead init", ".venv/bin/fairlead doctor"]
# While it runs: requests and outcomes first, so that the others have something to show.
SITE = ".venv/bin/fairlead up"
REPLAYS = [
    "fairlead replay azure --target 127.0.0.1:7480 --warm-up-s 30 --rate 10",
    "fairlead replay azure --target 127.0.0.1:7490 --call dispatch --extra '{\"ignore_eos\": true}'",
    "fairlead replay azure --target http://127.0.0.1:8000/v1 --model tiny"
    " --extra '{\"ignore_eos\": true}'",
]
WITH_A_SITE = [
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -keyout tls.key"
    " -out tls.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1",
    ".venv/bin/fairlead status",
    'tail -qF .fairlead/logs/*.jsonl | grep \'"level": "error"\'',
    'curl -X POST http://127.0.0.1:7491/v1/feedback -d \'{"ticket": "AVcA…zQ", "quality": 0.9}\'',
    'ROUTER_POLICY_SIDECARS=\'{"fairlead": "http://127.0.0.1:7491"}\'',
    "fairlead feedback trace TICKET",
    ".venv/bin/fairlead feedback check FILE",
    "fairlead feedback check records.ndjson",
    "fairlead feedback check records.ndjson --json",
    "fairlead models import answers.jsonl",
    "fairlead models import answers.jsonl --json",
    "fairlead models predict NAME [--json]",
    "fairlead rules test examples.jsonl [--json]",
    "fairlead tokens new shop --tenant acme --scopes route,feedback",
    ".venv/bin/fairlead decisions export",
    "fairlead decisions export --outcomes --out day.parquet",
    "fairlead evaluate day.parquet",
    "fairlead decisions export --outcomes --out tuesday.parquet",
    "fairlead evaluate tuesday.parquet --policy new.toml --snapshot .fairlead/snapshots",
    "fairlead compare fairlead.toml new.toml --log tuesday.parquet --snapshot .fairlead/snapshots",
    "fairlead backup site.tar.gz",
    "fairlead restore site.tar.gz --settings elsewhere.toml",
]
HERE = [*BEFORE, SITE, *REPLAYS, *WITH_A_SITE]

PLANNING = "tests/planning/test_planning_page.py"
CLIENTS = "tests/deploying/test_example_clients.py"
PRODUCERS = "tests/feedback/test_feedback_contract.py"
MAKES = "tests/operating/test_documented_makes.py"
TO_KAFKA = "BOOTSTRAP fairlead.feedback records.ndjson"
ELSEWHERE = {
    "make run": "tests/simulation/test_loop.py",
    "make test": ".ci/run",
    "make kafka": "tests/conftest.py",
    "fairlead traces inspect azure": PLANNING,
    "fairlead traces make flash --requests-per-s 5 --seconds 1800 --flash-times 5"
    " --out flash.parquet": PLANNING,
    "fairlead simulate flash.parquet --settings site.toml --events events.toml --to-s 60": PLANNING,
    "fairlead simulate monday.csv --settings ruled.toml": PLANNING,
    "fairlead plan azure --settings site.toml --from-s 1560 --to-s 1620 --stretch-s 30 --points 1"
    " --target-ttft-ms 2000 --target-tpot-ms 100 --share 0.98 --out planned.toml"
    " --report plan.html": PLANNING,
    "fairlead compare site.toml planned.toml --trace azure --from-s 1560 --to-s 1590"
    " --seeds 2": PLANNING,
    "cd examples/go": CLIENTS,
    "./generate.sh": CLIENTS,
    "FAIRLEAD_TOKEN=fl_… FAIRLEAD_CA=ca.pem go run . router:7480": CLIENTS,
    "cd examples/java": CLIENTS,
    "mvn package": CLIENTS,
    "FAIRLEAD_TOKEN=fl_… FAIRLEAD_CA=ca.pem java -jar target/client.jar router:7480": CLIENTS,
    f"python examples/feedback/producer.py {TO_KAFKA}": PRODUCERS,
    "java -cp 'tools/local_kafka/local_kafka/libs/*' examples/feedback/Producer.java"
    f" {TO_KAFKA}": PRODUCERS,
    f"cd examples/feedback && go run . {TO_KAFKA}": PRODUCERS,
    f"examples/feedback/kcat.sh {TO_KAFKA}": PRODUCERS,
    ".venv/bin/fairlead landmarks own.npz": "tests/estimating/test_own_landmarks.py",
    "fairlead judge calibrate labels.ndjson judge.json --usd-max 1": "tests/dispatching/test_judging.py",
    ".venv/bin/fairlead bench autoscaling": "tests/benches/test_bench_autoscaling.py",
    "make peers": MAKES,
    "make llm-pools": MAKES,
    "kcat -C -e -b BOOTSTRAP -t fairlead.feedback.dead-letter | jq -r '[.reason, .detail] | @tsv'": (
        PRODUCERS
    ),
}

# Pages whose commands are all run by a test of their own, from top to bottom.
WHOLE = {
    "docs/arms.md": "tests/arms/test_arms_page.py",
    "docs/control.md": "tests/control/test_admin.py",
    "docs/tutorial.md": "tests/operating/test_tutorial.py",
}

# By operating/test_documented_benches.py, over less: at full length they take up to 40 minutes.
OF_DECISIONS = [
    "fairlead bench decisions --json > decisions.json",
    "fairlead bench decisions --lambdas 0.03,0.1,0.4 --json",
    "fairlead bench decisions --quick",
    "fairlead bench decisions --rows 2000 --seeds 3",
    "fairlead bench decisions --table mine.parquet --table other.csv --seeds 12",
    "fairlead bench decisions --table texts.csv --encoder wordllama",
    "fairlead bench decisions --picture out/",
]
PLAN = ".venv/bin/fairlead plan azure"
FLEET = ".venv/bin/fairlead bench fleet --quick"
SPEED = "fairlead bench speed --quick --json | jq .stages"
CONTROL = "FAIRLEAD_BANDIT=FOLDER python -m fairlead bench control"
CONTROL_PART = f"{CONTROL} --part ope"
SHORTENED = [*OF_DECISIONS, PLAN, FLEET, SPEED, CONTROL, CONTROL_PART]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each."""
    return FENCE.findall(text)


def commands_of(text: str) -> list[str]:
    """Those of a page, in its order; a line that ends with a backslash goes on in the next."""
    shell = "".join(content for language, content in blocks(text) if language == "sh")
    lines = re.sub(r"\\\n\s*", "", shell).splitlines()
    return [line for line in (re.sub(r"(^|\s+)#\s.*", "", one).strip() for one in lines) if line]


def documented() -> dict[str, str]:
    """The page of each command, the first that has it."""
    return {
        command: str(page.relative_to(ROOT))
        for page in reversed(PAGES)
        for command in commands_of(page.read_text())
    }
