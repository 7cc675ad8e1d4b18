from semiovs_jax.runs.changes import MAY_CHANGE
from semiovs_jax.runtime.agreement import PER_HOST, differences


def test_a_difference_names_the_processes_of_each_value():
    facts = [{"config.seed": 0, "version of jax": "0.10.2"}, {"config.seed": 1, "version of jax": "0.10.2"}, {}, {}]
    assert differences(facts) == [
        "config.seed is 0 on process 0, 1 on process 1, missing on processes 2, 3",
        "version of jax is '0.10.2' on processes 0, 1, missing on processes 2, 3",
    ]
    assert differences(facts[:1] * 3) == []


def test_what_may_differ_between_hosts_may_change_between_starts():
    assert PER_HOST < MAY_CHANGE
