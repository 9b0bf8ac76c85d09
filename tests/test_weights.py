from __future__ import annotations

import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import reset_sessions
from omegaconf import OmegaConf

from metagame.downloads.disk import Need
from metagame.downloads.experiments import paper_configs
from metagame.downloads.open_clip_weights import OpenCLIPWeights, get_open_clip_weights, open_clip_weights
from metagame.downloads.weights import Repository, get_weights, is_cached, list_files, repositories, wanted
from metagame.games import GameError
from metagame.models.clip import CLIP
from scripts import download
from tests.download_fixtures import NO_WAITS, FileServer, put_repository, serving
from tests.jobs_fixtures import ROOT, shipped_configs, terminal_free_environment

WEIGHTS = bytes(range(256)) * 4096
PLAIN = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": WEIGHTS, "README.md": b"read me"}
COMMIT = "c" * 40
TWO_MODELS = ("figure7", "model=siglip2_vitb32,siglip2_vitl16")


@pytest.fixture(scope="module")
def server():
    with serving(FileServer()) as files:
        yield files


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """A hub of this machine with an empty cache, for the library that has read its environment before."""
    server.files.clear()
    server.asked.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reset_sessions()  # a session that is kept from another test may be an offline one
    yield server
    reset_sessions()


@pytest.fixture
def offline(hub, monkeypatch):
    """Call it, and the hub is not asked any more."""

    def go():
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)

    return go


def refused(reason):
    return pytest.raises(GameError, match=reason)


def snapshot(name):
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def cached(name):
    folder = snapshot(name)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Which files of which repositories


def paper_repositories(*names):
    with shipped_configs():
        return repositories(paper_configs(names, (), ROOT / "configs"))


def test_an_experiment_needs_each_of_its_models_once():
    assert paper_repositories("table4", "table2") == [
        Repository("facebook/metaclip-2-worldwide-huge-quickgelu"),
        Repository("google/siglip2-base-patch32-256"),
        Repository("google/siglip2-large-patch16-256"),
        Repository("openai/clip-vit-base-patch16"),
    ]


def test_a_tokenizer_is_no_repository_of_its_own_where_its_model_is_needed():
    assert paper_repositories("table3") == [Repository("black-forest-labs/FLUX.1-schnell")]


def test_of_a_repository_that_only_a_tokenizer_is_needed_of_its_folder_is_needed():
    with shipped_configs():
        configs = paper_configs((), ("model=flux_dev", "attribution=concept_maps", "benchmark=coco"), ROOT / "configs")
        assert repositories(configs) == [
            Repository("black-forest-labs/FLUX.1-dev"),
            Repository("black-forest-labs/FLUX.1-schnell", "main", "tokenizer_2"),
        ]


def test_models_in_a_folder_of_this_disk_need_nothing():
    assert paper_repositories("table1", "figure1") == []


def test_overrides_choose_other_models():
    with shipped_configs():
        configs = paper_configs(["figure3"], ["model=gemma3_4b_it", "model.revision=v1"], ROOT / "configs")
        assert repositories(configs) == [Repository("google/gemma-3-4b-it", "v1")]


def test_an_experiment_is_all_of_its_jobs_also_when_it_is_named_as_an_override():
    with shipped_configs():
        by_name, as_override = (
            repositories(paper_configs(names, overrides, ROOT / "configs"))
            for names, overrides in ((["figure10"], []), ([], ["experiment=figure10"]))
        )
    assert as_override == by_name
    assert len(by_name) > 1


@pytest.mark.slow
def test_tables_and_figures_need_every_model_that_a_paper_scale_names():
    names = {each.name for each in paper_repositories("table2", "table3", "table4", "figure2", "figure10")}
    scales = [OmegaConf.load(path).get("scales", {}) for path in (ROOT / "configs/model").glob("*.yaml")]
    named = {scale["paper"]["checkpoint"] for scale in scales if "checkpoint" in scale.get("paper", {})}
    assert names == named - {"Qwen/Qwen3-0.6B", "black-forest-labs/FLUX.1-dev"}  # of no experiment


FLUX = [
    "model_index.json", "flux1-schnell.safetensors", "ae.safetensors", "README.md", "schnell_grid.jpeg",
    "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    "text_encoder_2/config.json", "text_encoder_2/model-00001-of-00002.safetensors",
    "text_encoder_2/model-00002-of-00002.safetensors", "text_encoder_2/model.safetensors.index.json",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json",
    "transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
]  # fmt: skip


def test_of_a_pipeline_only_its_parts_are_wanted():
    unwanted = {
        "flux1-schnell.safetensors", "ae.safetensors", "README.md", "schnell_grid.jpeg",
        "transformer/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin",
    }  # fmt: skip
    assert wanted(FLUX) == set(FLUX) - unwanted
    assert wanted(FLUX, "tokenizer_2") == {"tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json"}


def test_weights_are_wanted_once():
    beside = ["config.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]
    duplicates = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "onnx/config.json"]
    others = ["open_clip_model.safetensors", "consolidated.safetensors", "model.fp16.safetensors", "logo.png"]
    assert wanted([*beside, *duplicates, *others, "model.safetensors"]) == {*beside, "model.safetensors"}
    assert wanted([*beside, *duplicates, *others]) == {*beside, "pytorch_model.bin"}


# Fetching


def test_a_repository_is_told_with_its_size_and_then_fetched(hub):
    put_repository(hub, "a/plain", PLAIN, large=["model.safetensors"])
    listing = list_files(Repository("a/plain"))
    assert listing.line() == "a/plain: 2 files, 1.0 MB, 1.0 MB to be fetched."
    assert listing.need() == Need(len(WEIGHTS) + 2, len(WEIGHTS) + 2)
    get_weights(listing)
    assert cached("a/plain") == ["config.json", "model.safetensors"]
    again = list_files(Repository("a/plain"))
    assert again.line() == "a/plain: 2 files, 1.0 MB, in the cache."
    assert again.need() == Need(0, 0)


def test_what_is_in_the_cache_is_not_fetched_again(hub):
    put_repository(hub, "a/plain", PLAIN)
    get_weights(list_files(Repository("a/plain")))
    hub.asked.clear()
    get_weights(list_files(Repository("a/plain")))
    assert all(each.path.startswith("/api/") for each in hub.asked)


def test_fetched_weights_are_loaded_without_a_network(hub, offline):
    tiny = ROOT / "data/tiny/clip"
    put_repository(hub, "a/clip", {path.name: path.read_bytes() for path in tiny.iterdir()})
    get_weights(list_files(Repository("a/clip")))
    hub.files.clear()
    offline()
    model = CLIP.load("a/clip", revision="main", device="cpu")
    assert model.revision == COMMIT


def test_a_cut_file_is_taken_up_where_it_ended(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    put_repository(hub, "a/plain", PLAIN, large=["model.safetensors"])
    path = f"a/plain/resolve/{COMMIT}/model.safetensors"
    hub.files[f"/{path}"].cuts = [300_000]
    get_weights(list_files(Repository("a/plain")), NO_WAITS)
    assert (snapshot("a/plain") / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.gets(path) == [None, f"bytes={300_000 // (1 << 16) * (1 << 16)}-"]


def test_a_file_that_is_cut_without_end_is_told(hub):
    put_repository(hub, "a/plain", PLAIN)
    hub.files[f"/a/plain/resolve/{COMMIT}/model.safetensors"].always_cut = 10
    with refused(r"a/plain cannot be fetched from http\S+ \(cut again and again\): run the same command again"):
        get_weights(list_files(Repository("a/plain")), NO_WAITS)


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
def test_a_file_that_comes_damaged_is_fetched_once_more_and_then_refused(hub, large):
    put_repository(hub, "a/plain", PLAIN, large=["model.safetensors"] if large else [])
    path = f"a/plain/resolve/{COMMIT}/model.safetensors"
    hub.files[f"/{path}"].content = WEIGHTS[::-1]
    with refused(r"a/plain cannot be fetched .*model\.safetensors is not what the hub says"):
        get_weights(list_files(Repository("a/plain")), (0.0,))
    assert hub.gets(path) == [None, None]
    assert cached("a/plain") == ["config.json"]


@pytest.mark.parametrize("status", [401, 403], ids=["without a login", "with one"])
def test_a_gated_repository_is_told_and_explained(hub, status):
    put_repository(hub, "a/gated", PLAIN, denied=status)
    listing = list_files(Repository("a/gated"))
    assert listing.line().startswith("a/gated (gated): 2 files")
    with refused(r"'a/gated' is gated: accept its licence at https://huggingface.co/a/gated, then .* 'hf auth login'"):
        get_weights(listing)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/nothing", "a/nothing cannot be fetched|a/nothing is not on the hub"),
        ("no/name/at/all", "no name on the hub"),
    ],
)
def test_a_repository_that_is_not_there_is_told(hub, name, reason):
    with refused(reason):
        list_files(Repository(name))


def test_a_hub_that_cannot_be_reached_is_told(hub, monkeypatch):
    with serving(FileServer()) as gone:
        monkeypatch.setattr(constants, "ENDPOINT", gone.address)
    with refused(rf"a/plain cannot be fetched from {gone.address} \(no connection\)"):
        list_files(Repository("a/plain"))


def test_without_the_hub_the_cache_is_looked_into(hub, offline):
    put_repository(hub, "a/plain", PLAIN)
    get_weights(list_files(Repository("a/plain")))
    offline()
    assert is_cached(Repository("a/plain"))
    assert not is_cached(Repository("a/other"))


# open_clip


def test_weights_of_open_clip_are_found_by_its_names():
    with shipped_configs():
        configs = paper_configs((), ["model=open_clip"], ROOT / "configs")
        assert open_clip_weights(configs) == [OpenCLIPWeights("ViT-B-16-quickgelu", "openai")]
        assert repositories(configs) == []


def test_weights_of_open_clip_come_through_its_own_downloader(hub, monkeypatch):
    put_repository(hub, "a/open", {"weights.safetensors": WEIGHTS})
    hub.files["/a/open/resolve/main/weights.safetensors"] = hub.files[f"/a/open/resolve/{COMMIT}/weights.safetensors"]
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", lambda *names: {"hf_hub": "a/open/weights.bin"})
    assert get_open_clip_weights(OpenCLIPWeights("ViT-B-16", "mine")).read_bytes() == WEIGHTS


def test_names_that_open_clip_does_not_know_are_refused():
    with refused(r"model\.pretrained='nobody': give names that open_clip\.list_pretrained\(\) lists"):
        get_open_clip_weights(OpenCLIPWeights("ViT-B-16", "nobody"))


# The script


@pytest.fixture
def two_models(hub, monkeypatch):
    """The models that TWO_MODELS asks for on the hub, the first of them gated."""
    monkeypatch.chdir(ROOT)
    put_repository(hub, "google/siglip2-base-patch32-256", PLAIN, denied=403)
    put_repository(hub, "google/siglip2-large-patch16-256", PLAIN)


def test_a_gated_model_does_not_stop_the_others(two_models, capsys, caplog):
    with pytest.raises(SystemExit) as end:
        download.main(["weights", *TWO_MODELS])
    assert end.value.code == 1
    assert "google/siglip2-large-patch16-256: 2 files, 1.0 MB, 1.0 MB to be fetched." in capsys.readouterr().out
    assert caplog.text.count("is gated") == 1
    assert cached("google/siglip2-large-patch16-256") == ["config.json", "model.safetensors"]


def test_a_dry_run_only_tells(two_models, capsys):
    download.main(["weights", *TWO_MODELS, "--dry-run"])
    assert re.search(r"2\.1 MB needed, .* free in .*hub\.", capsys.readouterr().out)
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(two_models, monkeypatch):
    usage = namedtuple("Usage", ["total", "used", "free"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**15, 0, 2 * 10**6))
    with pytest.raises(SystemExit, match=r"2\.0 MB free, 2\.1 MB are needed, .* set HF_HOME"):
        download.main(["weights", *TWO_MODELS])
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_offline_only_the_cache_is_told(two_models, offline, capsys):
    offline()
    with pytest.raises(SystemExit) as end:
        download.main(["weights", *TWO_MODELS])
    assert end.value.code == 1
    assert "google/siglip2-base-patch32-256: missing, HF_HUB_OFFLINE is set." in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_honours_the_hubs_environment(two_models, hub, tmp_path):
    command = [sys.executable, "-m", "scripts.download", "weights", *TWO_MODELS]
    environment = terminal_free_environment(
        HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path / "home"), NO_PROXY="127.0.0.1"
    )
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert process.stderr.count("is gated") == 1
    assert not re.search("[\x1b\r━]", process.stderr)
    found = tmp_path.glob("home/hub/models--google--siglip2-large-patch16-256/snapshots/*/model.safetensors")
    assert [path.read_bytes() for path in found] == [WEIGHTS]
