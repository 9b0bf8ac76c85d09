"""What pyproject.toml has no word for: the wheel's copy of configs/."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """The package, with ``configs/`` as ``metagame/configs``; an editable install uses those of the clone."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree("configs", Path(self.build_lib, "metagame", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
