"""What is made of measured times: one record per timing session, latencies without drift, how well they repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

STATISTICS = {"min": 0, "p10": 10, "median": 50, "p90": 90}  # as percentiles
TOO_NOISY = 0.015  # noise floor above which the machine is too busy
MAX_DRIFT = 1.15  # see `accepted`


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The times of one network in one session on one device, in ms, as the clock reported them.

    The statistics are over all runs of all rounds. `reference_*` are those of the reference network, which runs at
    both ends of every round. `quiet_*` are those of the reference in its fastest round. Both are averaged over the
    copies of the reference. Without a reference they are 0, and its name is empty.
    """

    min: float
    p10: float
    median: float
    p90: float
    noise: float  # relative difference in p10 between the first and the last half of the rounds, drift divided out
    reference_min: float
    reference_p10: float
    reference_median: float
    reference_p90: float
    quiet_min: float
    quiet_p10: float
    quiet_median: float
    quiet_p90: float
    rounds: int
    runs: int  # in a round
    reference: str
    taken: str  # when its first round began, UTC
    device: Mapping[str, Any]  # the description and the fingerprint

    @classmethod
    def of(
        cls,
        times: Sequence[Sequence[float]],
        reference: str,
        reference_times: Sequence[Sequence[Sequence[float]]],
        taken: str,
        device: Mapping[str, Any],
    ) -> Measurement:
        """Summarize the times (rounds, runs) of a network and those (rounds, copies, runs) of the reference, if any."""
        half = len(times) // 2
        first, last = statistic_of(times[:half], "p10"), statistic_of(times[-half:], "p10")
        if reference:
            first /= statistic_of_copies(reference_times[:half], "p10")
            last /= statistic_of_copies(reference_times[-half:], "p10")
        rounds = reference_times if reference else (((0.0,),),)
        return cls(
            **{name: statistic_of(times, name) for name in STATISTICS},
            noise=2 * abs(first - last) / (first + last),
            **{f"reference_{name}": statistic_of_copies(rounds, name) for name in STATISTICS},
            **{f"quiet_{name}": statistic_of_copies(rounds, name, quiet=True) for name in STATISTICS},
            rounds=len(times),
            runs=len(times[0]),
            reference=reference,
            taken=taken,
            device=device,
        )


@dataclasses.dataclass(frozen=True)
class Failure:
    """A network that could not be timed, with the reason of every attempt."""

    reasons: tuple[str, ...]
    taken: str  # when it was given up, UTC
    device: Mapping[str, Any]  # the description and the fingerprint


def statistic_of(times: Sequence[Sequence[float]], statistic: str) -> float:
    """One of `STATISTICS` over all runs of all rounds."""
    return float(np.percentile(times, STATISTICS[statistic]))


def statistic_of_copies(times: Sequence[Sequence[Sequence[float]]], statistic: str, quiet: bool = False) -> float:
    """The mean over copies of one of `STATISTICS` over all runs of all rounds; times (rounds, copies, runs).

    With `quiet`, over the runs of the round in which the statistic is smallest.
    """
    if quiet:
        return float(np.percentile(times, STATISTICS[statistic], axis=2).min(axis=0).mean())
    return float(np.percentile(times, STATISTICS[statistic], axis=(0, 2)).mean())


def undisturbed(measurements: Iterable[Measurement], statistic: str) -> dict[str, float]:
    """The baseline: the latency in ms of each reference network when no other program disturbs the machine.

    It is the 10th percentile, over all measurements, of the reference's latency in its fastest round. The runs at the
    ends of a round take only some ms, so a few of them are undisturbed even on a busy machine; the median of all runs
    never is.
    """
    quiet: dict[str, list[float]] = {}
    for m in measurements:
        if m.reference:
            quiet.setdefault(m.reference, []).append(getattr(m, f"quiet_{statistic}"))
    return {reference: float(np.percentile(values, 10)) for reference, values in quiet.items()}


def latencies(
    measurements: Iterable[Measurement], statistic: str, baseline: Mapping[str, float] | None = None
) -> np.ndarray:
    """The latencies (n,) in ms of n measurements, with drift divided out.

    A machine that is busy or slowed down slows the reference network alike. Each measurement is divided by the same
    statistic of the reference in its rounds, and multiplied by the reference's undisturbed latency: `baseline`, or
    that of these measurements. Measurements without a reference stay as they are.
    """
    measurements = list(measurements)
    baseline = undisturbed(measurements, statistic) if baseline is None else baseline
    y = np.array([getattr(m, statistic) for m in measurements])
    for i, m in enumerate(measurements):
        if m.reference:
            y[i] *= baseline[m.reference] / getattr(m, f"reference_{statistic}")
    return y


def robust_latencies(
    networks: Iterable[Sequence[Measurement]], baseline: Mapping[str, float] | None = None
) -> np.ndarray:
    """The latency (n,) in ms of each network, from several measurements of it: what a predictor is fitted on.

    It is the mean over the lower half of the measurements of their p10, drift divided out as in `latencies`. Other
    programs slow a network down for seconds to minutes, so the lower measurements were disturbed less. The lowest one
    alone is too low where the reference was disturbed. A burst changes the p10 less than the median, and the p10
    repeats better than the min, which is a single run. If `baseline` is the reference's median, so is the result: a
    network's median is to the reference's median as its p10 is to the reference's p10.
    """
    networks = [list(measurements) for measurements in networks]
    every = latencies([m for measurements in networks for m in measurements], "p10", baseline)
    each = np.split(every, np.cumsum([len(measurements) for measurements in networks]))
    return np.array([np.sort(ms)[: (len(ms) + 1) // 2].mean() for ms in each[: len(networks)]])


def accepted(
    measurements: Iterable[Measurement], statistic: str, baseline: Mapping[str, float], tries: int = 3
) -> list[Measurement]:
    """The measurements of a network that a budget may be judged by, in their order.

    A measurement is rejected where the reference took more than `MAX_DRIFT` times its undisturbed latency
    (`baseline`): so much drift cannot be divided out. It is also rejected where its statistic is that much further
    above its own min than the reference's is in its fastest round: a network may be slowed down more than the
    reference, as large ones are by programs that share the cache. Of `tries` rejected measurements in a row the least
    disturbed one is accepted.
    """

    def drift(m: Measurement) -> float:
        if not m.reference:
            return 1.0
        spread = (getattr(m, statistic) / m.min) / (getattr(m, f"quiet_{statistic}") / m.quiet_min)
        return max(getattr(m, f"reference_{statistic}") / baseline[m.reference], spread)

    kept: list[Measurement] = []
    tried: list[Measurement] = []
    for m in measurements:
        tried.append(m)
        if drift(m) <= MAX_DRIFT or len(tried) == tries:
            kept.append(min(tried, key=drift))
            tried = []
    return kept


def repeatability(measurements: Sequence[Measurement]) -> float:
    """The relative difference between the latencies of a network by every other measurement and by those in between.

    Of a single measurement, the difference between the halves of its rounds.
    """
    if len(measurements) == 1:
        return measurements[0].noise
    a, b = robust_latencies([measurements[::2], measurements[1::2]])
    return float(2 * abs(a - b) / (a + b))


def noise_floor(networks: Iterable[Sequence[Measurement]]) -> float:
    """The median `repeatability` of networks. Above `TOO_NOISY` the machine is too busy to be measured."""
    return float(np.median([repeatability(measurements) for measurements in networks]))
