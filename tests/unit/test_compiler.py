import jax

from bert_jax.training.compiler import OVERLAP, accepted, compiler_options
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh

MESH = make_mesh(MeshConfig(), jax.devices())


def test_other_platforms_than_tpu_get_no_options():
    assert compiler_options(MESH) == {}


def test_options_that_the_compiler_knows_are_accepted():
    options = {"xla_cpu_enable_fast_math": False}
    assert accepted(options, MESH) == options


def test_unknown_options_are_left_out_with_a_line_in_the_log(caplog):
    """As with a version of the compiler that has other names."""
    assert accepted(OVERLAP | {"xla_no_such_option": True}, MESH) == {}
    (line,) = caplog.messages
    assert line.startswith("training without the compiler options xla_enable_async_all_reduce, ")
    assert "xla_no_such_option" in line
