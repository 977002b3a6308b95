"""What is read out of a compiled program: what it sends, and what its operations cost."""

import pytest

from bert_jax.scaling.collectives import Collective, collectives
from bert_jax.scaling.profile import Cost, costs

# As the TPU compiler writes it, shortened: a loop over 12 layers whose body sums gradients over `fsdp`, a
# ring of four turns (its counter grows by 2 up to 8) that gathers a matrix over `fsdp`, and a gather that
# overlaps three fusions; other collectives after the loop.
HLO = """
HloModule jit_train_step, entry_computation_layout={()->f32[]}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %add.0 = f32[] add(%a, %b)
}

%windowed_dot_general_body_ag (p: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %p = (bf16[4,8]{1,0:T(8,128)}, u32[]) parameter(0)
  %gte.0 = bf16[4,8]{1,0} get-tuple-element(%p), index=0
  %gte.1 = u32[] get-tuple-element(%p), index=1
  %two = u32[]{:T(128)} constant(2)
  %cp.1 = (bf16[4,8], bf16[4,8], u32[]) collective-permute-start(%gte.0), source_target_pairs={{0,2},{2,0}}
  %cpd.1 = bf16[4,8]{1,0} collective-permute-done(%cp.1)
  %add.1 = u32[]{:T(128)} add(%gte.1, %two), backend_config={"estimated_cycles":"5"}
  ROOT %tuple.1 = (bf16[4,8]{1,0}, /*index=1*/u32[]) tuple(%cpd.1, /*index=1*/%add.1)
}

%windowed_cond (p: (bf16[4,8], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(8)
  %p.1 = (bf16[4,8]{1,0}, u32[]) parameter(0)
  %gte.2 = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %lt.0 = pred[]{:T(512)} compare(%gte.2, %limit), direction=LT
}

%body (q: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %q = (s32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %gte.3 = s32[] get-tuple-element(%q), index=0
  %one = s32[]{:T(128)} constant(1)
  %gte.4 = f32[8,16]{1,0} get-tuple-element(%q), index=1
  %ar.1 = (f32[8,16]{1,0:T(8,128)S(1)}, f32[16]) all-reduce(%gte.4, %b), replica_groups=[2,2]<=[2,2]T(1,0)
  %async-collective-start.4 = bf16[8]{0} fusion(%gte.4), kind=kCustom, calls=%begins
  %fusion.3 = bf16[8]{0} fusion(%async-collective-start.4), calls=%async_collective_fusion.1
  %async-collective-done.4 = bf16[8]{0} fusion(%fusion.3), kind=kCustom, calls=%ends
  %while.2 = (bf16[4,8], u32[]) while(%t.9), condition=%windowed_cond, body=%windowed_dot_general_body_ag
  %fusion.1 = f32[8,16]{1,0} fusion(%gte.4), calls=%fused, op_name="{{OP}}", {"estimated_cycles":"100"}
  %add.2 = s32[]{:T(128)} add(%gte.3, %one)
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[8,16]{1,0}) tuple(%add.2, %fusion.1)
}

%fused (x: f32[8,16]) -> f32[8,16] {
  ROOT %x = f32[8,16]{1,0} parameter(0)
}

%cond (q: (s32[], f32[8,16])) -> pred[] {
  %layers = s32[]{:T(128)} constant(12)
  %q.1 = (s32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %gte.5 = s32[]{:T(128)} get-tuple-element(%q.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%gte.5, %layers), direction=LT
}

%begins (w: bf16[4]) -> bf16[8] {
  %ag.1 = bf16[8]{0} all-gather(%w), channel_id=98, replica_groups=mesh['a'=2,'b'=2] {'b'}
  ROOT %start = bf16[8]{0} custom-call(%ag.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (w: bf16[4]) -> bf16[8] {
  ROOT %ag.2 = bf16[8]{0:T(8)} all-gather(%w), channel_id=98, replica_groups=mesh['a'=2,'b'=2] {'b'}
}

%ends (w: bf16[4]) -> bf16[8] {
  %ag.3 = bf16[8]{0} all-gather(%w.2), channel_id=98, replica_groups=mesh['a'=2,'b'=2] {'b'}
  ROOT %done = bf16[8]{0} custom-call(%ag.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.7 (y: f32[64]) -> f32[16] {
  %y = f32[64]{0} parameter(0)
  %ar.3 = f32[64]{0} all-reduce(%y), replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}
  ROOT %slice.1 = f32[16]{0} dynamic-slice(%ar.3), dynamic_slice_sizes={16}
}

ENTRY %main (z: f32[64]) -> f32[] {
  %z = f32[64]{0} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[8,16]{1,0}) while(%tuple.3), condition=%cond, body=%body
  %fusion.2 = f32[16]{0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.7
  %g = (bf16[3], bf16[6]) all-gather-start(), replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}
  %all-to-all.1 = f32[32]{0} all-to-all(%z), replica_groups={{0,1},{2,3}}
  ROOT %alone = f32[] all-reduce(%loss), replica_groups={{0},{1},{2},{3}}, to_apply=%sum
}
"""


def test_collectives_of_a_program():
    """On a mesh of fsdp × tensor = 2 × 2: device 1 is the neighbour along tensor, device 2 along fsdp."""
    assert collectives(HLO, {"data": 1, "fsdp": 2, "tensor": 2}) == [
        Collective("all-reduce", "fsdp", "f32", 12 * (8 * 16 + 16) * 4, 24, alone=12 * (8 * 16 + 16) * 4),
        Collective("all-gather", "fsdp", "bf16", 12 * 4 * 4 * 8 * 2 + 6 * 2, 12 * 4 + 1),
        Collective("reduce-scatter", "fsdp×tensor", "f32", 64 * 4, 1, alone=64 * 4),
        Collective("all-gather", "tensor", "bf16", 12 * 8 * 2, 12),
        Collective("all-to-all", "tensor", "f32", 32 * 4, 1, alone=32 * 4),
    ]


def test_collectives_of_other_compilers():
    """On CPU and GPU a scatter is an instruction of its own, and gathers are joined."""
    program = """
ENTRY %main (z: f32[64]) -> f32[] {
  %s = f32[8]{0} reduce-scatter(%z), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
  %g = ((f32[8], f32[16]), (f32[32], f32[64])) all-gather-start(%a, %b), replica_groups={{0,1,2,3}}
}
"""
    assert collectives(program, {"data": 1, "fsdp": 4, "tensor": 1}) == [
        Collective("all-gather", "fsdp", "f32", (32 + 64) * 4, 2),
        Collective("reduce-scatter", "fsdp", "f32", 8 * 4 * 4, 1, alone=8 * 4 * 4),
    ]


def test_collectives_between_slices():
    """Two slices of two devices: each sends half of the 16 numbers that its slice has summed."""
    program = """
ENTRY %main (z: f32[16]) -> f32[16] {
  %z = f32[16]{0} parameter(0)
  %ar = f32[16]{0} all-reduce(%z), channel_id=2, replica_groups={{0,1}}, to_apply=%sum
  %send = (f32[8]{0:T(8,128)}, u32[], token[]) send(%s, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %ag = f32[16]{0} all-gather(%r), channel_id=2, replica_groups={{0,1}}, dimensions={0}
}
"""
    assert collectives(program, {"slices": 2, "data": 2, "fsdp": 1, "tensor": 1}) == [
        Collective("all-gather", "data", "f32", 16 * 4, 1, alone=16 * 4),
        Collective("all-reduce", "data", "f32", 16 * 4, 1, alone=16 * 4),
        Collective("all-reduce", "slices", "f32", 16 * 4, 1),
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (
            "jit(f)/transpose(jvp())/while/body/closed_call/dot_general.3",
            "backward layers dot_general",
        ),
        ("jit(train_step)/while/body/jvp()/while/body/erfc", "forward layers erfc"),
        ("transpose(jvp())/while/body/checkpoint/rematted_computation/mul", "again layers mul"),
        ("jit(train_step)/jvp(vmap(jit(_bernoulli)))/add", "forward outside dropout"),
        ("jit(train_step)/while/body/select_n", "update outside select_n"),
    ],
)
def test_costs_count_as_often_as_loops_turn(path, kind):
    expected = [Cost(*kind.split(), 12 * 100), Cost("update", "outside", "unnamed", 12 * 4 * 5)]
    assert costs(HLO.replace("{{OP}}", path)) == expected
