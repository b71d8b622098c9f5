import time

from predictors.ledger import Ledger


def test_a_stage_within_another_one_counts_for_itself_alone():
    ledger = Ledger()
    with ledger.spending("timing"), ledger.spending("exporting"):
        time.sleep(0.02)
    seconds = ledger.seconds
    assert seconds["exporting"] >= 0.02 and seconds["timing"] < 0.01
    assert abs(sum(seconds.values()) - 2 * seconds["total"]) < 1e-6


def test_each_stage_that_took_time_has_a_line():
    ledger = Ledger()
    with ledger.spending("searching"):
        time.sleep(0.06)
    assert [line.split()[0] for line in str(ledger).splitlines()] == ["searching", "total"]
