from __future__ import annotations

from tests.benchmarks.trainer_speed import Speed, combined_speed, markdown


def speed(rate: float, cpu: float = 1.0) -> Speed:
    return Speed(rate=rate, cpu=cpu, startup=2.0, end=0.5)


def test_the_first_step_counts_as_start_up() -> None:
    stamps = [(110.0, 5.0), (112.0, 6.0), (114.0, 9.0)]
    assert Speed.of(stamps, began=100.0, ended=115.0, batch=16) == Speed(rate=8.0, cpu=2.0, startup=10.0, end=1.0)


def test_rates_of_parallel_processes_add_up() -> None:
    first, second = Speed(rate=3, cpu=1, startup=5, end=1), Speed(rate=4, cpu=2, startup=7, end=0)
    assert combined_speed([first, second]) == Speed(rate=7, cpu=3, startup=7, end=1)


def test_ratios_are_of_the_same_repetition() -> None:
    found = {
        "bare": [speed(10, 1.0), speed(20, 2.0), speed(10, 1.0)],
        "trainer": [speed(9, 1.25), speed(20, 2.0), speed(8, 2.0)],
        "bare x 2": [speed(18), speed(30), speed(16)],
        "two": [speed(18), speed(30), speed(8)],
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(found).splitlines() if line]
    assert rows[2] == ["bare", "10.00", "1.000", "2.0", "0.5"]
    assert [row[1:] for row in rows[-4:]] == [
        ["0.900, 1.000, 0.800", "0.900"],
        ["0.800, 1.000, 0.500", "0.800"],
        ["2.000, 1.500, 1.000", "1.500"],
        ["1.800, 1.500, 1.600", "1.600"],
    ]
