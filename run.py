"""Run one job, or with -m (or an experiment) a sweep of jobs, and write the experiment's table.

python run.py model=adder attribution=meta_ig benchmark=addition
python run.py experiment=table1
"""

import sys

from metagame.cli import run

if __name__ == "__main__":
    run(sys.argv[1:])
