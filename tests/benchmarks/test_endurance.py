import time
from types import SimpleNamespace

import pytest

from data_pipelines.labels.cache import open_label_cache
from data_pipelines.sources.shards import open_shards
from semiovs_jax.benchmarks import endurance, photographs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endurance")
    photographs.write_photographs(folder, 4, endurance.SIZE)
    endurance.write_records(folder, 30, shards=3)
    return folder


def test_every_record_has_its_label(root):
    records, labels = open_shards(root / "ood"), open_label_cache(root / "ovs")
    assert len(set(records.ids())) == 30
    assert not labels.faults()
    for position, id_ in enumerate(records.ids()):
        assert records[position].image.read() == (root / f"images/{int(id_) % 4:06d}.jpg").read_bytes()
        assert labels.is_labeled(id_)


def test_another_loader_gives_the_batch_of_the_middle(root, capsys):
    found = endurance.measure(root, batches=20, started=time.time())
    assert found.equal
    assert len(found.memory) == 19  # the first batch has been taken before
    assert 0 < found.restore_seconds < found.reopen_seconds
    assert found.first_batch_seconds > 0
    endurance.print_report(found, SimpleNamespace(records=30, shards=3, batches=20))
    assert "the same batch" in capsys.readouterr().out
