"""What the compose file, the Dockerfiles and the build context promise, read as text: no engine needed."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
DOCKERFILES = {name: ROOT / "deploy" / f"{name}.Dockerfile" for name in ("teacher", "student")}
EXAMPLE = ROOT / "deploy" / ".env.example"
SERVICES = ("teacher", "keys", "student")
ALLOWED = {"constraints.txt"} | {
    f"{folder}/{name}"
    for folder, package in (
        ("shared", "corte_protocol"),
        ("teacher_service", "corte_teacher"),
        ("student", "corte_student"),
    )
    for name in ("LICENSE", "pyproject.toml", package)
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file, parsed; variables are still written as `${...}`."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def test_only_what_both_compose_versions_know(compose: dict[str, Any]) -> None:
    """The keys that docker-compose 1.29.2 rejects are absent."""
    assert "name" not in compose and "secrets" not in compose
    assert set(compose["services"]) == set(SERVICES)
    for service in compose["services"].values():
        assert not {"gpus", "develop"} & set(service)
        assert "start_interval" not in service.get("healthcheck", {})
        assert all("required" not in condition for condition in service.get("depends_on", {}).values())


def test_the_student_reaches_the_boundary_only(compose: dict[str, Any]) -> None:
    """The student is on `boundary` alone, which is internal and has no host address; the teacher on both."""
    services, networks = compose["services"], compose["networks"]
    assert services["student"]["networks"] == ["boundary"]
    assert services["teacher"]["networks"] == ["front", "boundary"]
    assert services["keys"]["network_mode"] == "none"
    assert set(networks) == {"front", "boundary"}
    assert networks["boundary"]["internal"] is True
    assert networks["boundary"]["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}


def test_only_the_teacher_is_published_and_only_on_loopback(compose: dict[str, Any]) -> None:
    """One port is published, on 127.0.0.1; no service borrows the host's network or namespaces."""
    services = compose["services"]
    assert services["teacher"]["ports"] == ["127.0.0.1:${CORTE_PUBLISHED_PORT:-8000}:8000"]
    assert not any("ports" in services[name] for name in ("student", "keys"))
    for service in services.values():
        assert not {"privileged", "pid", "ipc", "cap_add", "devices", "userns_mode"} & set(service)
        assert service.get("network_mode") in (None, "none")


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_without_rights(compose: dict[str, Any], name: str) -> None:
    """The root is read-only, /tmp is memory, no capability is left and none can be gained."""
    service = compose["services"][name]
    assert service["read_only"] is True
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's own, which is not root


def test_keys_and_models_are_mounted_where_they_belong(compose: dict[str, Any]) -> None:
    """The teacher only reads keys and models, and writes its state; the student sees none of them."""
    mounts = {name: compose["services"][name]["volumes"] for name in SERVICES}
    assert "keys:/keys:ro" in mounts["teacher"] and mounts["keys"] == ["keys:/keys"]
    assert "keys" in compose["volumes"]
    assert [mount for mount in mounts["teacher"] if not mount.endswith(":ro")] == ["state:/state"]
    # The default of `${CORTE_RUNS:-runs}` has a colon too, so the target is what follows the brace.
    targets = {re.sub(r"\$\{[^}]*\}", "", mount).split(":", 1)[1] for mount in mounts["student"]}
    assert targets == {"/images:ro", "/weights:ro", "/runs", "/ledger"}


def test_the_teacher_tells_whether_it_is_ready(compose: dict[str, Any]) -> None:
    """The healthcheck asks /readyz in Python, and the student waits for it."""
    test = compose["services"]["teacher"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"] and "'/readyz'" in test[3]
    compile(test[3], "healthcheck", "exec")
    assert compose["services"]["student"]["depends_on"] == {"teacher": {"condition": "service_healthy"}}


def test_the_student_is_asked_for(compose: dict[str, Any]) -> None:
    """`up` alone starts the teacher only: the others wait behind profiles."""
    services = compose["services"]
    assert "profiles" not in services["teacher"]
    assert services["student"]["profiles"] == ["student"] and services["keys"]["profiles"] == ["keys"]


def test_each_side_is_told_its_own_settings_only(compose: dict[str, Any]) -> None:
    """The client's key never enters the teacher's environment, nor the key file's path the student's."""
    teacher, student = (compose["services"][name]["environment"] for name in ("teacher", "student"))
    assert "CORTE_TEACHER_KEY" not in teacher
    assert student == {"CORTE_TEACHER_KEY": "${CORTE_TEACHER_KEY:-}"}
    assert not any("env_file" in service for service in compose["services"].values())


def test_no_secret_is_shipped() -> None:
    """No file of the deployment holds a key, and the example leaves the one secret empty."""
    files = [ROOT / "docker-compose.yml", ROOT / ".dockerignore", EXAMPLE, *DOCKERFILES.values()]
    for file in files:
        assert not re.search(r"ct_[0-9a-f]{8}_|BEGIN .*PRIVATE KEY", file.read_text()), file
    assert "#CORTE_TEACHER_KEY=\n" in EXAMPLE.read_text()


def test_the_example_explains_every_variable() -> None:
    """The example explains each variable that the compose file reads, image tags apart, and no other."""
    example = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE.read_text(), re.MULTILINE))
    read = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert read - example == {"CORTE_TEACHER_IMAGE", "CORTE_STUDENT_IMAGE"} and example <= read


def test_the_context_holds_sources_only() -> None:
    """`.dockerignore` shuts everything out first, then lets in packages, their metadata and the pins."""
    rules = [line for line in _lines(ROOT / ".dockerignore") if not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_in == ALLOWED
    assert all((ROOT / name).exists() for name in let_in)
    last = max(index for index, rule in enumerate(rules) if rule.startswith("!"))
    assert all(rule.startswith("**/") for rule in rules[last + 1 :])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_process_is_not_root(name: str) -> None:
    """The last user of each image is numeric, not 0, and what it runs is an argument list."""
    lines = _lines(DOCKERFILES[name])
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    uid, _, gid = users[-1].partition(":")
    assert int(uid) >= 10000 and int(gid) >= 10000
    assert f'ENTRYPOINT ["corte-{name}"]' in lines


def test_the_hidden_model_is_not_reported() -> None:
    """The teacher's image turns onnxruntime's telemetry off: it would tell a third party about the model."""
    assert any(
        line.rstrip("\\ ").endswith("ORT_DISABLE_TELEMETRY=1") for line in _lines(DOCKERFILES["teacher"])
    )


@pytest.mark.parametrize(
    ("name", "own", "other"),
    [("teacher", "teacher_service", "student"), ("student", "student", "teacher_service")],
)
def test_each_image_takes_its_own_side_only(name: str, own: str, other: str) -> None:
    """One pip command installs the protocol and this side from the context; the other side is not copied.

    pip gets two paths, so no index is asked for a name of ours; the teacher's extra `torch` is not asked for.
    """
    lines = _lines(DOCKERFILES[name])
    installs = [line for line in lines if "pip install" in line]
    assert installs == [
        f"RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ./shared ./{own}",
    ]
    copied = {
        line.split()[1].rstrip("/") for line in lines if line.startswith("COPY ") and "--from" not in line
    }
    assert copied == {"constraints.txt", "shared", own} and other not in copied


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_build_asks_no_strange_registry(name: str) -> None:
    """Every stage starts from the one public base; no frontend is pulled, no index or mirror is named."""
    text = DOCKERFILES[name].read_text()
    stages = [line for line in _lines(DOCKERFILES[name]) if line.startswith("FROM ")]
    assert stages == ["FROM python:3.11-slim AS build", "FROM python:3.11-slim"]
    assert "# syntax=" not in text and "ARG " not in text
    assert not re.search(r"https?://|index-url|trusted-host|find-links", text)


@pytest.mark.parametrize("command", [("docker", "compose"), ("docker-compose",)], ids=" ".join)
def test_compose_accepts_the_file(command: tuple[str, ...]) -> None:
    """Compose itself finds the file valid, with the example as its settings; no daemon is asked."""
    if shutil.which(command[0]) is None or _status(*command, "version") != 0:
        pytest.skip(f"{' '.join(command)} is not installed")
    arguments = ["--env-file", str(EXAMPLE), "--file", str(ROOT / "docker-compose.yml")]
    assert _status(*command, *arguments, "--profile", "student", "--profile", "keys", "config", "-q") == 0


def _lines(path: Path) -> list[str]:
    """The lines of a file that say something."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _status(*command: str) -> int:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr)
    return done.returncode
