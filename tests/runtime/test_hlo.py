"""HLO texts below are cut from programs compiled for v5e and for the CPU."""

import pytest

from semiovs_jax.runtime import hlo

TABLES = """HloModule jit_step, is_scheduled=true, num_partitions=8

FileNames
1 "model.py"
2 "train_step.py"

FunctionNames
1 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=26 end_line=26 column=7 end_column=7}
2 {file_name_id=2 function_name_id=1 line=17 end_line=17 column=8 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}


ENTRY %main (param: f32[8,128]) -> f32[] {
"""
ALL_REDUCE = (
    "  %all-reduce.3 = (f32[128,256]{0,1:T(8,128)S(1)}, bf16[256,128]{1,0:T(8,128)(2,1)}, f32[]{:T(128)}) "
    "all-reduce(%fusion, %fusion.4, %fusion.5), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add.clone, "
    'metadata={op_name="jit(step)/jvp()/reduce_sum" stack_frame_id=1}\n'
)


def faults(line, data_parallel=True):
    return hlo.find_faults(hlo.parse_instructions(TABLES + line + "\n}\n"), data_parallel=data_parallel)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[]", 4),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048),
        ("pred[3]{0}", 3),
        ("s4[3]{0}", 2),
        ("f8e4m3fn[10]", 10),
        ("(f32[2,2]{1,0}, /*index=1*/u32[], token[])", 20),
        ("f32[<=10,2]", 80),
        ("f32[0,5]", 0),
        ("()", 0),
    ],
)
def test_shape_bytes(shape, expected):
    assert hlo.shape_bytes(shape) == expected


def test_an_instruction_with_a_tuple_shape_and_its_source_line():
    (instruction,) = hlo.parse_instructions(TABLES + ALL_REDUCE + "}\n")
    assert instruction.name == "all-reduce.3"
    assert instruction.opcode == "all-reduce"
    assert instruction.shape.startswith("(f32[128,256]")
    assert instruction.shape.endswith("f32[]{:T(128)})")
    assert instruction.source == "jit(step)/jvp()/reduce_sum (model.py:26)"


def test_a_tuple_shaped_all_reduce_is_counted_whole_and_is_no_fault():
    (collective,) = hlo.find_collectives(hlo.parse_instructions(TABLES + ALL_REDUCE))
    assert collective.kind == "all-reduce"
    assert collective.num_bytes == 4 * 128 * 256 + 2 * 256 * 128 + 4
    assert faults(ALL_REDUCE) == []


def test_an_asynchronous_collective_is_counted_once():
    text = (
        "  %all-gather-start = (bf16[1024]{0}, bf16[8192]{0}) all-gather-start(%p), channel_id=3, dimensions={0}\n"
        "  %all-gather-done = bf16[8192]{0} all-gather-done(%all-gather-start)\n"
        "  %cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%q), channel_id=4\n"
        "  %cpd = f32[4]{0} collective-permute-done(%cp)\n"
        "  %ar = f32[16]{0} all-reduce-start(%r), channel_id=5, to_apply=%add\n"
        "  %ard = f32[16]{0} all-reduce-done(%ar)\n"
    )
    found = hlo.find_collectives(hlo.parse_instructions(text))
    assert [(c.kind, c.num_bytes) for c in found] == [
        ("all-gather", 16384),
        ("collective-permute", 16),
        ("all-reduce", 64),
    ]


def test_a_collective_fused_into_several_computations_is_counted_once():
    line = "  %all-gather.{} = bf16[8192]{{0}} all-gather(%p), channel_id=3, dimensions={{0}}\n"
    text = "".join(line.format(number) for number in (6, 8, 10))
    assert len(hlo.find_collectives(hlo.parse_instructions(text))) == 1
    without_channel = text.replace(", channel_id=3", "")
    assert len(hlo.find_collectives(hlo.parse_instructions(without_channel))) == 3


def test_other_collectives_are_faults_of_a_data_parallel_step_only():
    line = (
        "  %all-gather = f32[8192]{0} all-gather(%x), channel_id=3, dimensions={0}, "
        'metadata={op_name="jit(step)/jit(sort)/sort" stack_frame_id=2}'
    )
    assert faults(line) == [
        "moves data between devices other than by all-reduce: "
        "all-gather of 32,768 bytes: jit(step)/jit(sort)/sort (train_step.py:17)"
    ]
    assert faults(line, data_parallel=False) == []


@pytest.mark.parametrize(
    "line",
    [
        '  %debug_print.2 = () custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback", '
        'metadata={op_name="jit(step)/debug_print" stack_frame_id=2}',
        "  %debug_print.15 = (f32[]{:T(128)}, u32[], token[]) send(%x, %t), channel_id=1, is_host_transfer=true, "
        'metadata={op_name="jit(step)/debug_print" stack_frame_id=2}\n'
        "  %debug_print.16 = token[] send-done(%debug_print.15), channel_id=1, is_host_transfer=true, "
        'metadata={op_name="jit(step)/debug_print" stack_frame_id=2}',
        '  %o = token[] outfeed(%x, %t), metadata={op_name="jit(step)/debug_print" stack_frame_id=2}',
    ],
)
def test_host_callbacks_are_faults_named_once(line):
    assert faults(line) == ["calls back to the host: jit(step)/debug_print (train_step.py:17)"]


def test_a_device_to_device_send_is_not_a_host_callback():
    assert faults("  %send = (f32[4]{0}, u32[], token[]) send(%x, %t), channel_id=1") == []


@pytest.mark.parametrize("shape", ["f64[8,2]{1,0}", "(f32[], f64[])", "c128[2]{0}"])
def test_float64_is_a_fault(shape):
    line = f'  %add.1 = {shape} add(%x, %y), metadata={{op_name="jit(step)/add" stack_frame_id=1}}'
    assert faults(line) == ["computes in float64: jit(step)/add (model.py:26)"]


@pytest.mark.parametrize(
    "instruction",
    [
        "f32[<=64,3]{1,0} compare(%x, %y)",
        "f32[64,3]{1,0} set-dimension-size(%x, %n), dimensions={0}",
        's32[8]{0} custom-call(%x), custom_call_target="PadToStatic"',
    ],
)
def test_dynamic_shapes_are_faults(instruction):
    assert faults(f"  %nonzero = {instruction}") == ["has a dynamic shape: an operation without a name"]


def test_many_culprits_are_cut_short_and_every_kind_is_named():
    lines = [f'  %a.{n} = f64[] add(%x, %y), metadata={{op_name="add {n}"}}' for n in range(5)]
    assert faults("\n".join([*lines, "  %i = (f32[], token[]) infeed(%t)"])) == [
        "calls back to the host: an operation without a name",
        "computes in float64: add 0; add 1; add 2; and 2 more",
    ]
