"""A Mac that sleeps, runs hot, is unplugged or short of memory, as its own commands and clocks tell it."""

import pytest

from macft.events import StepDone
from macft.machine import GIB, MIB
from macft.training.vitals import SETTLED_STEPS, Vitals, keep_awake

PLUGGED = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t95%; charged; 0:00 remaining present: true\n"
ON_BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t{}%; discharging; 3:10 remaining\n"
COOL = "Note: No thermal warning level has been recorded\nCPU_Scheduler_Limit \t= 100\nCPU_Speed_Limit \t= 100\n"
HOT = "CPU_Scheduler_Limit \t= 100\nCPU_Available_CPUs \t= 8\nCPU_Speed_Limit \t= 62\n"
DESKTOP = "Now drawing from 'AC Power'\n"


class Mac:
    """Answers `pmset` and tells the time."""

    def __init__(self, system: str = "Darwin") -> None:
        self.batt, self.therm, self.asked = PLUGGED, COOL, 0
        self.awake_seconds = self.wall_seconds = 1000.0
        self.step = 0
        self.vitals = Vitals(
            self.run, system=system, monotonic=lambda: self.awake_seconds, wall=lambda: self.wall_seconds
        )

    def run(self, command: list[str]) -> str:
        assert command[:2] == ["/usr/bin/pmset", "-g"]
        self.asked += 1
        return {"batt": self.batt, "therm": self.therm}[command[2]]

    def update(self, seconds: float = 61.0, *, asleep: float = 0.0, held: int = GIB) -> list[str]:
        self.step += 1
        self.awake_seconds += seconds
        self.wall_seconds += seconds + asleep
        done = StepDone(step=self.step, epoch=1.0, metrics={"active_memory_bytes": held})
        return [warned.message for warned in self.vitals.look(done)]


def test_a_mac_in_good_health_says_nothing() -> None:
    mac = Mac()
    assert [mac.update() for _ in range(200)] == [[]] * 200


def test_the_system_is_asked_once_a_minute() -> None:
    mac = Mac()
    for _ in range(120):
        mac.update(1.0)
    assert mac.asked == 2 * 2


def test_sleep_is_told_with_its_length() -> None:
    mac = Mac()
    mac.update()
    assert mac.update(asleep=20.0) == []
    (message,) = mac.update(asleep=3600.0)
    assert "slept for 1 h" in message
    assert "step 3" in message
    assert mac.update() == []


def test_a_battery_is_told_when_it_takes_over_and_when_it_is_low() -> None:
    mac = Mac()
    mac.update()
    mac.batt = ON_BATTERY.format(80)
    assert mac.update() == ["on battery, at 80%"]
    mac.batt = ON_BATTERY.format(50)
    assert mac.update() == []
    mac.batt = ON_BATTERY.format(19)
    assert "the battery is low, at 19%" in mac.update()[0]
    mac.batt = PLUGGED
    assert mac.update() == []
    mac.batt = ON_BATTERY.format(60)
    assert mac.update() == ["on battery, at 60%"]


def test_heat_is_told_once_each_time() -> None:
    mac = Mac()
    mac.therm = HOT
    assert mac.update() == ["macOS slows this Mac down to 62% of its speed to cool it"]
    assert mac.update() == []
    mac.therm = COOL
    mac.update()
    mac.therm = HOT
    assert len(mac.update()) == 1


def test_growth_of_memory_is_told_once_and_only_beyond_what_is_usual() -> None:
    mac = Mac()
    for _ in range(SETTLED_STEPS):
        mac.update(held=GIB)
    assert mac.update(held=GIB + GIB // 4 + 60 * MIB) == []
    (message,) = mac.update(held=2 * GIB)
    assert "memory grows" in message
    assert mac.update(held=3 * GIB) == []


@pytest.mark.parametrize(("batt", "warned"), [(PLUGGED, 1), (DESKTOP, 0)])
def test_who_has_a_lid_is_told_to_leave_it_open(batt: str, warned: int) -> None:
    mac = Mac()
    mac.batt = batt
    assert len(list(mac.vitals.start())) == warned


def test_nothing_is_asked_of_another_system() -> None:
    mac = Mac("Linux")
    assert list(mac.vitals.start()) == []
    assert "slept" in mac.update(asleep=100.0)[0]
    assert mac.asked == 0


def test_a_mac_is_kept_awake_for_as_long_as_the_process_lives() -> None:
    started: list[list[str]] = []
    assert keep_awake(77, system="Darwin", spawn=lambda command: started.append(list(command)))
    assert started == [["/usr/bin/caffeinate", "-i", "-w", "77"]]
    assert not keep_awake(77, system="Linux", spawn=lambda command: started.append(list(command)))
    assert len(started) == 1


def test_a_mac_without_caffeinate_trains_all_the_same() -> None:
    def missing(_: object) -> object:
        raise FileNotFoundError

    assert not keep_awake(77, system="Darwin", spawn=missing)
