"""schemathesis over both documents: no 5xx, and nothing that the documents do not say."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from quazzar.reference.routes import document_path
from tests.product.process import ROOT, product

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(4 * 3600)]

# Not the one of the documents' examples: logins that succeed would push the run's own session out.
PASSWORD = "no example has this one"
EXAMPLES = int(os.environ.get("QUAZZAR_FUZZ_EXAMPLES") or ("2000" if os.environ.get("CI") else "60"))
"""Test cases per API in each phase, spread over its operations; CI and `make fuzz` ask for more."""

SEED = os.environ.get("QUAZZAR_FUZZ_SEED") or ("1" if os.environ.get("CI") else None)
"""CI says the same of the same commit; new cases are what `make fuzz` is for."""

CONFIG = Path(__file__).with_name("schemathesis.toml")
# These may end the session that the run is logged in with, so they come last, on a login of their own.
ENDING = ("Logout", "DeleteSession", "SwitchTenant", "DeleteTenant")


@pytest.mark.parametrize("realm", ["instance", "panel"])
def test_nothing_outside_the_document(realm: str, tmp_path: Path) -> None:
    with product(tmp_path / "data") as one:
        one.start()
        prefix = "/panel" if realm == "panel" else ""
        if realm == "panel":
            body = {"email": "a@example.com", "password": PASSWORD, "name": "A", "organization": "A"}
            assert one.http.post("/panel/api/auth/register", json=body).status_code == 201
            login = {"email": "a@example.com", "password": PASSWORD}
        else:
            login = {"username": "fuzz", "password": PASSWORD}
            assert one.http.post("/api/auth/setup", json=login).status_code == 201
        paths = msgspec.json.decode(document_path(realm).read_bytes())["paths"]
        operations = sum(len(item) for item in paths.values())
        # Both before the first run: its wrong guesses make logins from this address wait.
        secrets = [one.http.post(f"{prefix}/api/auth/login", json=login).json()["access_token"] for _ in range(2)]
        for which, token in zip(("--exclude-operation-id", "--include-operation-id"), secrets, strict=True):
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
                *("run", f"{one.url}{prefix}/api/openapi.json"),
                *("--header", f"Authorization: Bearer {token}", "--mode", "all", "--checks", "all"),
                # A body of the right shape may still name a template or an app that is not there.
                *("--exclude-checks", "positive_data_acceptance"),
                *("--max-examples", str(max(1, EXAMPLES // operations)), "--request-timeout", "10", "--no-color"),
                *(("--seed", SEED) if SEED else ()),
                *("--suppress-health-check", "all", "--continue-on-failure", "--no-shrink"),
                *(word for operation in ENDING for word in (which, operation)),
            ]
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.product.fuzz_hooks", "PYTHONPATH": str(ROOT)},
                check=False,
            )
            print(run.stdout[-20000:], run.stderr[-4000:])
            assert run.returncode == 0, run.stdout[-8000:]
        log = one.log.read_text()
        assert "Traceback" not in log, log[-4000:]
        assert not any(token in log for token in secrets)
        assert PASSWORD not in log
