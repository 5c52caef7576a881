"""Many threads at once, and processes: calls, first use, forks, workers of a DataLoader."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lineavae.collapse import CollapseMonitor, CollapseStatistics
from lineavae.ops import gaussian_kl
from op_specs import SPECS
from test_op_contract import value_and_gradients

THREADS = 4
MEAN, LOGVAR = torch.randn(2, 600, 200, generator=torch.Generator().manual_seed(0))  # of several tasks


@pytest.fixture
def two_threads():
    """Of each call."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def at_once(function, arguments):
    """Call it in as many threads as there are arguments, all of which begin together."""
    barrier = threading.Barrier(len(arguments))

    def call(argument):
        barrier.wait()
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(call, arguments))


def test_every_operator_from_many_threads(two_threads):
    """Each call gives what it gives alone: no state is shared."""
    calls = [(spec, spec.sample("large", torch.float32)) for spec in SPECS]

    def run(index):
        turned = calls[index:] + calls[:index]  # so that different ones meet
        results = [value_and_gradients(spec.op, sample, spec.differentiable) for spec, sample in turned]
        return results[-index:] + results[:-index] if index else results

    alone = run(0)
    for found in at_once(run, range(THREADS)):
        for spec, (value, gradients), (expected, expected_gradients) in zip(
            (spec for spec, _ in calls), found, alone, strict=True
        ):
            # a product of matrices may be split otherwise where other threads are at work
            tolerance = {"rtol": 0, "atol": 0} if spec.any_threads else {"rtol": 1e-4, "atol": 1e-3}
            torch.testing.assert_close(value, expected, **tolerance)
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected_gradients[name], **tolerance)


def test_statistics_and_monitors_of_many_threads(two_threads):
    def run(_):
        statistics, monitor = CollapseStatistics(MEAN.shape[1]), CollapseMonitor()
        for mean, logvar in zip(MEAN.split(150), LOGVAR.split(150), strict=True):
            statistics.update(mean, logvar)
            monitor.observe(mean, logvar)
        return statistics.compute(), monitor.check().report

    alone = run(None)
    for found in at_once(run, range(THREADS)):
        for report, expected in zip(found, alone, strict=True):
            assert report.at().to_dict() == expected.at().to_dict()


FIRST_USE = """
import os, threading
import torch, torchmetrics
import lineavae.collapse, lineavae.data, lineavae.linear, lineavae.nn, lineavae.report

USES = [
    "from lineavae.collapse import CollapseStatistics; CollapseStatistics(3).update(x, x)",
    "from lineavae.collapse import CollapseMonitor; CollapseMonitor().observe(x, x)",
    "from lineavae.nn import GaussianVAE, MLPEncoder; MLPEncoder(3, 2)(x)",
    "from lineavae.linear import PPCA; PPCA(1).fit(x)",
    "from lineavae.linear import LinearVAE; LinearVAE(3, 1)(x).sum().backward()",
    "from lineavae.ops import collapse_statistics; collapse_statistics(x, x, [0.01])",
    "from lineavae.ops import gaussian_kl; gaussian_kl(x, x.clone().requires_grad_()).sum().backward()",
    "from lineavae.ops import free_bits_kl; torch.func.vmap(lambda x: free_bits_kl(x, x, 0.1))(x[None])",
]
x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

def trial():
    barrier, errors = threading.Barrier(len(USES)), []

    def use(code):
        barrier.wait()
        try:
            exec(code, {"x": x, "torch": torch})
        except BaseException as error:
            errors.append(f"{code}: {error!r}")

    threads = [threading.Thread(target=use, args=[code]) for code in USES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors

for _ in range(TRIALS):
    child = os.fork()  # that has used nothing yet
    if child == 0:
        errors = trial()
        print("\\n".join(errors), flush=True)
        os._exit(bool(errors))
    assert os.waitpid(child, 0)[1] == 0
"""


def test_first_use_by_many_threads():
    """What is loaded, registered and remembered then; the imports before are Python's to order."""
    trials = int(os.environ.get("FIRST_USES", "1"))
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE.replace("TRIALS", str(trials))],
        capture_output=True,
        text=True,
        timeout=100 * trials,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # those of OpenMP do not live on in a fork
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Posteriors(Dataset):
    """KLs, by the operator in the process of a worker."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return gaussian_kl(MEAN + index, LOGVAR)


def test_forked_workers_of_a_data_loader(two_threads):
    """After operators have run in several threads here: torch gives the workers one."""
    expected = [posterior.clone() for posterior in map(Posteriors().__getitem__, range(4))]
    loader = DataLoader(Posteriors(), None, num_workers=2, multiprocessing_context="fork", timeout=100)
    for found, kl in zip(loader, expected, strict=True):
        assert torch.equal(found, kl)


def test_a_fork_with_one_thread(two_threads):
    """The threads of OpenMP stay behind: a child that wants several waits for them, as in all of torch."""
    expected = gaussian_kl(MEAN, LOGVAR)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(not torch.equal(gaussian_kl(MEAN, LOGVAR), expected))
    assert os.waitpid(child, 0)[1] == 0
