"""The Dockerfile: pinned packages, an ordinary user, nothing secret, and what Ray's launchers need of it."""

import re

from tests.cluster.files import ROOT, load, read

LINES = re.sub(r"\\\n", " ", read("Dockerfile")).splitlines()
INSTRUCTIONS = [line.split(None, 1) for line in LINES if line and not line.startswith(("#", " "))]


def said(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_packages_come_from_the_pinned_files_only():
    installs = [line for line in said("RUN") if "pip install" in line]
    assert installs == ["pip install --no-cache-dir -r requirements.txt -r cluster/requirements.txt"]
    assert "openslide" not in " ".join(said("RUN")), "OpenSlide comes from the wheel openslide-bin"
    assert "openslide-bin==" in (ROOT / "requirements.txt").read_text()


def test_it_runs_as_an_ordinary_user_whose_home_ray_can_find():
    assert INSTRUCTIONS[-1] == ["USER", "csat"]
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(said("ENV"))))
    assert environment["HOME"] == "/home/csat"  # Ray takes /root where the image does not say
    for name in ("aws.yaml", "gcp.yaml"):
        assert all(target.startswith(environment["HOME"] + "/") for target in load(name)["file_mounts"])
    assert "useradd --uid 1000" in " ".join(said("RUN"))
    assert not {name for name in environment if re.search("TOKEN|SECRET|KEY|PASSWORD", name)}
    assert not said("ARG") and not said("ADD")


def test_what_launchers_call_is_there():
    installed = next(line for line in said("RUN") if "apt-get install" in line)
    for package in ("openssh-client", "rsync", "wget", "procps"):  # Ray's autoscaler, KubeRay's probes, `ray stop`
        assert package in installed.split()


def test_only_what_is_copied_is_sent_to_the_builder():
    copied = {line.split()[0] for line in said("COPY")}
    ignored = read("Dockerfile.dockerignore").splitlines()
    assert [line for line in ignored if not line.startswith("#")][0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / path).exists() for path in copied)


def test_the_job_of_kuberay_runs_what_the_image_has():
    (folder,) = said("WORKDIR")
    script = re.search(r"python (\S+)", load("kuberay/rayjob.yaml")["spec"]["entrypoint"]).group(1)
    assert script.startswith(folder + "/")
    assert (ROOT / script.removeprefix(folder + "/")).is_file()
