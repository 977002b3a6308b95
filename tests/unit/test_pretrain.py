import jax
import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.errors import UserError
from bert_jax.pretrain import check
from bert_jax.training.config import TrainConfig


@pytest.mark.parametrize(("base", "phase", "where"), [(12, 16, ""), (16, 12, "phases[1]: ")])
def test_batches_of_all_phases_are_divided_among_the_devices(tmp_path, base, phase, where):
    phases = {"num_steps": 1}, {"num_steps": 1, "data": {"global_batch_size": phase}}
    config = Config(data=DataConfig(global_batch_size=base), train=TrainConfig(num_steps=0), phases=phases)
    assert jax.device_count() == 8
    with pytest.raises(UserError) as error:
        check(config, tmp_path)
    assert str(error.value).startswith(
        f"{where}data.global_batch_size=12 is not divisible by 8 devices (mesh.data × mesh.fsdp)"
    )
