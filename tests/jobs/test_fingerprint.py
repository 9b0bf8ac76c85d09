"""What a sample was computed from: where its code, its model's files or its own files change, it is computed again."""

from __future__ import annotations

import ast
import importlib
import io
import itertools
import json
import shutil
import sys

import pytest
import yaml
from hydra import compose
from PIL import Image

from metagame.experiments import finish
from metagame.jobs import fingerprint
from metagame.jobs.build import Job
from metagame.jobs.fingerprint import code_manifest, files_digest
from metagame.jobs.manifest import job_manifest
from metagame.jobs.records import RecordStore
from metagame.jobs.run import run_job
from metagame.jobs.spec import targets
from metagame.report.results import OTHER_CODE
from tests.tiny.jobs import ROOT, Number, Numbers, Plain, job_config, shipped_configs
from tests.tiny.runs import table

NUMBERS = itertools.count()

METHOD = '''"""A method of one's own."""

from tests.tiny.jobs import Share
from {helper} import FACTOR

Base = Share


class Own(Share):
    """FACTOR times the share."""

    def __init__(self):
        super().__init__(FACTOR * 1.0)
'''


class OwnJob:
    """A job with a method of one's own, in a module that imports another one."""

    def __init__(self, folder, caplog):
        self.output_dir, self.caplog, number = folder / "results", caplog, next(NUMBERS)
        self.name, helper = f"own_{number}", f"helper_{number}"
        self.paths = [folder / f"{name}.py" for name in (self.name, helper)]
        self.paths[0].write_text(METHOD.format(helper=helper))
        self.paths[1].write_text("FACTOR = 2.0\n")

    def edit(self, old, new):
        """Change a text in the module that has it, whose name is returned."""
        (path,) = [path for path in self.paths if old in path.read_text()]
        path.write_text(path.read_text().replace(old, new))
        self.forget()
        return path.stem

    def forget(self):
        """Forget what was imported, as a new process would."""
        importlib.invalidate_caches()
        fingerprint._found.cache_clear()
        for path in self.paths:
            sys.modules.pop(path.stem, None)

    def config(self, **changes):
        return job_config(self.output_dir, attribution__method={"_target_": f"{self.name}.Own"}, **changes)

    def run(self, **changes):
        """Run it to its end; what it says to have changed."""
        self.caplog.clear()
        outcome = run_job(self.config(**changes))
        assert outcome.n_done == outcome.n_samples
        self.folder = outcome.folder
        said = [message for message in self.caplog.messages if "changed" in message]
        return [message.removeprefix(f"{self.folder.name}: ") for message in said]

    def samples(self):
        """The sample of each record, in the order in which they were written."""
        return [json.loads(line)["sample"] for line in (self.folder / "records.jsonl").read_text().splitlines()]

    def number(self):
        """The last one that was computed for sample 1."""
        store = RecordStore(self.folder)
        record = [record for record in store.read().values() if record.sample == "1"][-1]
        return store.load_arrays(record)["attribution"][0]

    def notes(self, *configs, **changes):
        """Those of the table of this job, or of several."""
        assert finish(configs or [self.config(**changes)])
        return table(self.output_dir)["notes"]


@pytest.fixture
def job(tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its time has too few digits to see an edit
    job = OwnJob(tmp_path, caplog)
    yield job
    job.forget()


# Code


EDITS = {
    "a formula": ("FACTOR * 1.0", "FACTOR * 100.0"),
    "a formula that gives the same": ("FACTOR * 1.0", "1.0 * FACTOR"),
    "a base class": ("(Share)", "(Base)"),
    "a module that it imports": ("2.0", "7.0"),
}
LAYOUT = {
    "a comment": ("class Own", "# shares\nclass Own"),
    "a docstring": ('"""FACTOR times the share."""', '"""As much as is fair."""'),
    "the module's docstring": ('"""A method of one\'s own."""\n\n', ""),
    "lines and spaces": ("FACTOR * 1.0", "\n            FACTOR*1.0,\n        "),
}


@pytest.mark.parametrize("edit", EDITS | LAYOUT)
def test_each_edit_changes_the_hash_of_its_module_but_not_comments_docstrings_and_layout(job, edit):
    before = job_manifest(job.config())
    module = job.edit(*(EDITS | LAYOUT)[edit])
    changed = [name for name, code in job_manifest(job.config()).items() if code != before[name]]
    assert changed == ([module] if edit in EDITS else [])


def test_a_method_that_changes_is_computed_again_and_named_and_a_change_that_is_taken_back_needs_no_work(job):
    assert (job.run(), job.number(), job.notes()) == ([], 2.0, [])
    first = (job.output_dir / "table.json").read_bytes()
    job.edit("* 1.0", "* 100.0")
    assert job.run() == [f"the code ({job.name}) has changed: 3 samples are computed again."]
    assert (job.samples(), job.number()) == (["1", "2", "3"] * 2, 200.0)
    for old, new in (("* 100.0", "* 1.0"), ("* 1.0", "* 100.0"), ("* 100.0", "* 1.0")):
        job.edit(old, new)
        assert (job.run(), len(job.samples())) == ([], 6)
    job.notes()
    assert (job.output_dir / "table.json").read_bytes() == first


def test_the_module_that_is_named_differs_from_that_of_the_records_not_of_the_last_run(job):
    """A helper changes and changes back, with another sample asked for in between; then the method changes."""
    job.run()
    job.edit("2.0", "7.0")
    job.run(limit=1)
    job.edit("7.0", "2.0")
    job.edit("* 1.0", "* 100.0")
    (said,) = job.run(benchmark__values=[1, 2, 3])
    assert job.name in said


def test_stale_records_are_kept_where_asked_for_while_they_have_their_arrays_and_the_table_says_so(job):
    job.run()
    job.edit("* 1.0", "* 100.0")
    kept = "3 samples are kept (reuse=stale), and the table says so."
    assert job.run(reuse="stale") == [f"the code ({job.name}) has changed: {kept}"]
    assert (len(job.samples()), job.number()) == (3, 2.0)
    assert job.notes(reuse="stale") == [f"Share: 3 of 3 samples were {OTHER_CODE}"]
    job.run()
    assert (job.number(), job.notes()) == (200.0, [])
    job.edit("* 100.0", "* 3.0")
    for path in (job.folder / "arrays").glob("*.npz"):
        path.unlink()
    job.run(reuse="stale")
    assert (job.number(), job.notes(reuse="stale")) == (6.0, [])


def test_a_table_names_the_rows_of_other_code_than_the_current_one_when_it_is_written(job):
    """Two jobs with a method of one's own beside one without it."""
    configs = [job.config(), job.config(attribution__label="Other", seed=1), job_config(job.output_dir, seed=2)]
    configs[2].attribution.label = "Shipped"
    for cfg in configs:
        run_job(cfg)
    assert job.notes(*configs) == []
    job.edit("* 1.0", "* 100.0")
    assert job.notes(*configs) == [f"Share, Other: 3 of 3 samples each were {OTHER_CODE}"]
    run_job(configs[0])
    assert job.notes(*configs) == [f"Other: 3 of 3 samples were {OTHER_CODE}"]


@pytest.mark.parametrize("content", [None, "def"])
def test_a_table_says_nothing_of_code_that_is_not_found_or_cannot_be_read(job, content):
    job.run()
    job.paths[0].unlink()
    if content is not None:
        job.paths[0].write_text(content)
    job.forget()
    assert finish([job.config()], [job.folder.name])
    assert table(job.output_dir)["notes"] == []


ROOMS = ("jobs", "report", "viewer", "tracking", "cli")


@pytest.mark.parametrize("group", ["model", "attribution", "benchmark", "estimator"])
def test_of_what_is_shipped_the_code_counts_that_computes(group):
    contents = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / group).rglob("*.yaml")]
    for target in {target for content in contents for target in targets(content)}:
        names = set(code_manifest([target]))
        assert any(f"{target}.".startswith(f"{name}.") for name in names), target
        assert not [name for name in names if name.split(".")[1] in ROOMS]
        if group == "attribution" and "symbolic" not in target:
            assert names >= {"metagame.contracts", "metagame.meta", "metagame.games"}


OWN = """
import numpy
import metagame as mg
from helpers.weights import FACTOR
from installed import ONE
from metagame import explain
from metagame.report.table import Table
from .. import constants
from ..deep.er import X


class Own:
    def explain(self, bound, progress=None):
        from .late import LATE

        return mg.concept_metagame
"""
FILES = {
    "mine/methods/__init__.py": "from .shares import Own\n",
    "mine/methods/shares.py": OWN,
    "helpers/weights.py": "from . import deeper\nFACTOR = 1\n",
    **dict.fromkeys(["mine/__init__.py", "mine/constants.py", "mine/deep/er.py", "mine/methods/late.py"], ""),
    **dict.fromkeys(["mine/other.py", "helpers/deeper.py", "site-packages/installed.py"], "X = 1\n"),
}
IMPORTED = "methods methods.shares methods.late constants deep.er"


def test_of_ones_own_code_what_is_imported_in_any_way_counts_but_nothing_installed(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint._found.cache_clear()
    before = code_manifest(["mine.methods.Own"])
    own = {name for name in before if not name.startswith("metagame.")} - {"mine"}
    assert own == {*(f"mine.{name}" for name in IMPORTED.split()), "helpers.weights", "helpers.deeper"}
    assert {"metagame.explainer", "metagame.concept", "metagame.attributions.method"} <= set(before)
    assert "metagame.report.table" not in before
    (tmp_path / "helpers/deeper.py").write_text("X = 10\n")
    after = code_manifest(["mine.methods.Own"])
    assert [name for name in before if after[name] != before[name]] == ["helpers.deeper"]
    assert "metagame.meta" in code_manifest(["metagame.meta_attributions"])
    assert "installed" in code_manifest(["installed.ONE"])
    assert list(targets([{"_target_": "hydra.utils.get_class", "path": "installed.ONE"}])) == ["installed.ONE"]
    fingerprint._found.cache_clear()


ANY_CODE = '''
def f(x, *, y=None, z: int = ...) -> None:
    """Text."""
    return [f"{x!r:>{y}} of 'it'" for x in (1.5, 2j, b"a", None) if not (yield)]
'''


def test_the_hash_of_code_is_the_same_in_every_python():
    found = fingerprint._hash_without_docstrings(ast.parse(ANY_CODE))
    assert found == "2e6388f07787d4fc"
    assert fingerprint._hash_without_docstrings(ast.parse(ANY_CODE.replace("y=None", "y=1"))) != found


# Files and weights


def test_the_digest_of_files_depends_on_their_names_and_content_and_on_those_in_a_folder(tmp_path, monkeypatch):
    a, b, folder = tmp_path / "a", tmp_path / "b", tmp_path / "folder"
    folder.mkdir()
    for path in (a, b, folder / "c"):
        path.write_text("1")
    asked = [[], [a], [b], [a, b], [folder], [a, tmp_path / "absent"]]
    digests = [files_digest(each) for each in asked]
    assert files_digest([b, a, b]) == digests[3]
    for path in (a, folder / "c"):
        path.write_text("2")
    digests += [files_digest(each) for each in ([a], [a, b], [folder])]
    assert len(set(digests)) == len(digests)

    def fail(path):
        raise PermissionError

    monkeypatch.setattr(fingerprint, "file_digest", fail)
    assert files_digest([a]) not in digests


class Filed(Number):
    """A number whose value is in a file."""

    def files(self):
        return (FiledNumbers.folder / f"{self.id}.txt",)


class FiledNumbers(Numbers):
    folder = None

    def samples(self):
        return [Filed(str(value), float((self.folder / f"{value}.txt").read_text())) for value in self.values]

    def files(self):
        return (self.folder / "scale.txt",)


def test_a_sample_whose_file_changes_is_computed_again_alone_and_all_where_a_common_file_does(
    tmp_path, job, monkeypatch
):
    monkeypatch.setattr(FiledNumbers, "folder", tmp_path)
    steps = [
        ({"1": "5", "2": "5", "3": "5", "scale": "5"}, ["1", "2", "3"]),
        ({"2": "6"}, ["2"]),
        ({"scale": "6"}, ["1", "2", "3"]),
        ({"2": "5", "scale": "5"}, []),
    ]
    computed = []
    for number, (written, expected) in enumerate(steps):
        for name, content in written.items():
            (tmp_path / f"{name}.txt").write_text(content)
        said = job.run(benchmark___target_=f"{__name__}.FiledNumbers")
        computed += expected
        assert job.samples() == computed
        changed = [f"the samples' files have changed: {len(expected)} samples are computed again."]
        assert said == (changed if number and expected else [])


def test_new_weights_are_new_samples_and_causes_that_come_together_are_told_in_one_line(job, monkeypatch):
    job.run()
    monkeypatch.setattr(Plain, "revision", "second")
    assert job.run() == ["the model's files have changed: 3 samples are computed again."]
    assert job.samples() == ["1", "2", "3"] * 2
    monkeypatch.setattr(Plain, "revision", "third")
    job.edit("* 1.0", "* 100.0")
    causes = f"the code ({job.name}) and the model's files have changed"
    assert job.run() == [f"{causes}: 3 samples are computed again."]


@pytest.mark.slow
def test_a_shipped_job_sees_the_files_of_its_model_and_of_its_samples_change(tmp_path, caplog):
    """One change at a time; each is taken back, and then the first record counts again."""
    parts = ["model=clip_vitb16", "attribution=mask_clip", "benchmark=pointing_game", "limit=1"]
    parts += [f"model.checkpoint={shutil.copytree(ROOT / 'data/tiny/clip', tmp_path / 'clip')}"]
    with shipped_configs():
        sample = Job.build(compose("config", overrides=parts)).benchmark.samples()[0]
        picture = tmp_path / "grids" / "jpeg" / sample.game / f"{sample.k:02d}.png"
        picture.parent.mkdir(parents=True)
        sample.image().save(picture)
        parts += ["benchmark/scenes=paper", f"benchmark.scenes.root={tmp_path / 'grids'}"]
        cfg = compose("config", overrides=[*parts, f"output_dir={tmp_path / 'results'}"])
    store = RecordStore(run_job(cfg).folder)
    config, mirrored = tmp_path / "clip/config.json", io.BytesIO()
    sample.image().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored, "png")
    for path, content, cause in (
        (config, config.read_bytes() + b"\n", "the model's files have changed"),
        (picture, mirrored.getvalue(), "the samples' files have changed"),
    ):
        before = path.read_bytes()
        path.write_bytes(content)
        caplog.clear()
        run_job(cfg)
        assert f"{cause}: 1 samples are computed again." in caplog.text
        scores = [record.scores for record in store.read().values()]
        assert (scores[-1] == scores[0]) == (path == config)
        path.write_bytes(before)
        caplog.clear()
        run_job(cfg)
        assert "computed again" not in caplog.text
