import pytest
from made_up import collapse_report, deep, experiment, plain

from lineavae.experiments import EXPERIMENTS, Config, execute


@pytest.fixture(scope="module")  # the experiments are known in these tests alone
def paths(tmp_path_factory):
    """Two runs, of experiments that are known for as long, and a collapse report."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, run in (("deep", deep), ("plain", plain)):
            patch.setitem(EXPERIMENTS.data, name, experiment(name, run))
            execute(EXPERIMENTS[name], Config(num_images=10, seed=3), folder / name)
        collapse_report().to_json(folder / "collapse.json")
        yield [folder / "deep", folder / "plain", folder / "collapse.json"]
