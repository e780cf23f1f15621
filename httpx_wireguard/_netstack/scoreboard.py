"""What is in flight and what is known of its fate: the SACK scoreboard (RFC 2018, RFC 6675) of RACK (RFC 8985 6.1)."""

from __future__ import annotations

from bisect import bisect_right

MAXIMUM_TRANSMISSIONS = 4096  # ours: bounds memory, and the work that SACKs of single bytes ask for (CVE-2019-11478)
ROUNDING = 1e-6  # seconds; ours: on a steady path every round trip is the smallest, but for the last digits


class Transmission:
    """Consecutive bytes that left in one go. Sequence numbers are unwrapped, times monotonic seconds.

    `delivered` to `lost_before` are what draft-ietf-ccwg-bbr 4.1.2.2 notes with each packet when it is sent.
    """

    __slots__ = (
        "app_limited",
        "delivered",
        "delivered_at",
        "end",
        "first_sent_at",
        "in_flight",
        "lost",
        "lost_before",
        "retransmitted",
        "sacked",
        "sent_at",
        "start",
    )

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end  # the sequence number after it
        self.sent_at = 0.0
        self.retransmitted = False  # it left more than once
        self.sacked = False  # the far side holds it
        self.lost = False  # declared lost, and not sent again since
        self.delivered = 0  # P.delivered
        self.delivered_at = 0.0  # P.delivered_time
        self.first_sent_at = 0.0  # P.first_sent_time
        self.app_limited = False  # P.is_app_limited
        self.in_flight = 0  # P.tx_in_flight
        self.lost_before = 0  # P.lost

    def split(self, at: int) -> Transmission:
        """Cut off and return what begins at sequence number `at`."""
        tail = Transmission(at, self.end)
        self.end = at
        tail.sent_at, tail.retransmitted = self.sent_at, self.retransmitted
        tail.sacked, tail.lost = self.sacked, self.lost
        tail.delivered, tail.delivered_at = self.delivered, self.delivered_at
        tail.first_sent_at, tail.app_limited = self.first_sent_at, self.app_limited
        tail.in_flight, tail.lost_before = self.in_flight, self.lost_before
        return tail


class Delivery:
    """What one acknowledgment delivered: bytes that were not known to have arrived before it."""

    __slots__ = (
        "_minimum_rtt",
        "_now",
        "clean",
        "echo",
        "length",
        "newest",
        "newest_end",
        "oldest_original",
        "reordered",
    )

    def __init__(self, echo: int | None, minimum_rtt: float, now: float) -> None:
        """
        Args:
            echo: when, in whole milliseconds of `now`'s clock, the segment left that this acknowledgment echoes the
                timestamp of (RFC 7323); None without one.
            minimum_rtt: seconds; what returns faster answers an earlier transmission.
        """
        self.echo = echo
        self._minimum_rtt = minimum_rtt
        self._now = now
        self.length = 0
        self.newest: Transmission | None = None  # the one that left last
        self.newest_end = 0
        self.clean: Transmission | None = None  # the same among those that left once only (Karn's algorithm)
        self.oldest_original: float | None = None  # when the first of these left
        self.reordered = False  # one of them arrived after something sent later

    def add(self, one: Transmission, end: int, highest: int, echo: int | None) -> None:
        """`one`, up to `end`, arrived; before this acknowledgment nothing above `highest` had.

        Args:
            echo: when, in whole milliseconds of `now`'s clock, the segment left whose timestamp comes back for it.
        """
        self.length += end - one.start
        sent_at = one.sent_at
        if not one.retransmitted:
            self.reordered = self.reordered or end < highest  # RFC 8985 6.2 step 3
            if self.clean is None or sent_at >= self.clean.sent_at:
                self.clean = one
            if self.oldest_original is None or sent_at < self.oldest_original:
                self.oldest_original = sent_at
        elif (echo is not None and echo < int(sent_at * 1000)) or self._now - sent_at < self._minimum_rtt - ROUNDING:
            return  # RFC 8985 6.2 step 2: of something sent again, it may answer an earlier transmission
        if self.newest is None or (sent_at, end) > (self.newest.sent_at, self.newest_end):
            self.newest, self.newest_end = one, end


class Scoreboard:
    """Everything between SND.UNA and SND.NXT, in order, as transmissions without gap or overlap.

    Neighbours that the far side holds are one, so there are at most two transmissions for each hole and each burst.
    A peer without SACK is served by counting duplicate acknowledgments.
    """

    __slots__ = ("_lost_from", "duplicates", "highest", "lost", "pieces_sacked", "sacked", "transmissions")

    def __init__(self) -> None:
        self.transmissions: list[Transmission] = []
        self.sacked = 0  # bytes
        self.pieces_sacked = 0  # how many transmissions, or parts of one, since there last were none
        self.lost = 0  # bytes declared lost and not sent again
        self.duplicates = 0  # duplicate acknowledgments without SACK information
        self.highest = 0  # RACK.fack: the end of the highest byte known to have arrived
        self._lost_from = 0  # nothing before this sequence number is lost

    @property
    def full(self) -> bool:
        """No room for more: what is small and many has to be acknowledged first."""
        return len(self.transmissions) >= MAXIMUM_TRANSMISSIONS

    def _index(self, sequence: int) -> int:
        """Of the transmission that holds `sequence`."""
        return max(bisect_right(self.transmissions, sequence, key=_start) - 1, 0)

    def add(self, one: Transmission) -> None:
        """New data left, at SND.NXT."""
        self.transmissions.append(one)

    def acknowledge(self, unacknowledged: int, delivery: Delivery) -> None:
        """SND.UNA moved to `unacknowledged`."""
        highest, gone, waited = self.highest, 0, False
        for one in self.transmissions:
            if one.start >= unacknowledged:
                break
            end = min(one.end, unacknowledged)
            if one.sacked:
                self.sacked -= end - one.start
            else:
                if one.lost:
                    self.lost -= end - one.start
                waited = waited or one.retransmitted
                delivery.add(one, end, highest, delivery.echo)
            if end < one.end:
                one.start = end
                break
            gone += 1
        del self.transmissions[:gone]
        if waited:
            delivery.clean = None  # it may have arrived long ago, and waited behind a hole to be acknowledged
        if not self.sacked:
            self.pieces_sacked = 0
        self.highest = max(highest, unacknowledged)

    def sack(self, start: int, end: int, delivery: Delivery) -> None:
        """The far side says that it holds [start, end), all of which is in flight."""
        highest = self.highest
        index = self._index(start)
        while index < len(self.transmissions):
            one = self.transmissions[index]
            if one.start >= end:
                break
            if one.sacked or one.end <= start:
                index += 1
                continue
            if self.full and (one.start < start or one.end > end):
                index += 1  # as if it had not been said: it will be sent once more
                continue
            if one.start < start:
                index += 1
                self.transmissions.insert(index, one.split(start))
                continue
            if one.end > end:
                self.transmissions.insert(index + 1, one.split(end))
            # Deviates from RFC 8985 6.2 step 2: behind a hole the far side echoes what came before the hole (RFC 7323
            # 4.3), which says nothing of this one. Else neither a tail probe nor a retransmission shows a loss before.
            delivery.add(one, one.end, highest, None)
            self.highest = max(self.highest, one.end)
            self._hold(index)
            index = self._join(index) + 1

    def _hold(self, index: int) -> None:
        one = self.transmissions[index]
        length = one.end - one.start
        if one.lost:
            self.lost -= length
            one.lost = False
        one.sacked = True
        self.sacked += length
        self.pieces_sacked += 1

    def _join(self, index: int) -> int:
        """Make one of what is held beside `index`; returns where it is now."""
        transmissions = self.transmissions
        one = transmissions[index]
        if index + 1 < len(transmissions) and transmissions[index + 1].sacked:
            one.end = transmissions.pop(index + 1).end
        if index and transmissions[index - 1].sacked:
            transmissions[index - 1].end = one.end
            del transmissions[index]
            index -= 1
        return index

    # -- losses

    def mark_lost(self, one: Transmission) -> None:
        """`one` is neither held nor lost by now."""
        one.lost = True
        self.lost += one.end - one.start
        self._lost_from = min(self._lost_from, one.start)

    def lose_first(self, end: int) -> Transmission | None:
        """What begins at SND.UNA and ends no later than `end`, unless that is lost already: now it is."""
        if not self.transmissions or (one := self.transmissions[0]).lost or one.sacked:
            return None
        if end < one.end:
            self.transmissions.insert(1, one.split(end))
        self.mark_lost(one)
        return one

    def lose_all(self) -> None:
        """All that is in flight, and that the far side does not hold, is lost."""
        for one in self.transmissions:
            if not one.sacked and not one.lost:
                self.mark_lost(one)

    def unmark(self) -> None:
        """Nothing was lost."""
        for one in self.transmissions:
            one.lost = False
        self.lost = 0

    def forget_sacks(self) -> None:
        """The far side may have thrown away what it reported (RFC 2018 8).

        If not, it reports it anew: that neither measures the path nor proves anything, as if it had been sent again.
        """
        for one in self.transmissions:
            if one.sacked:
                one.sacked, one.retransmitted = False, True
        self.sacked = self.pieces_sacked = self.duplicates = 0

    def clear(self) -> None:
        """Nothing is in flight."""
        self.transmissions.clear()
        self.sacked = self.pieces_sacked = self.lost = self.duplicates = 0

    def first_lost(self) -> Transmission | None:
        """RFC 6675 4 NextSeg rule 1: the first that is lost and was not sent again."""
        if not self.lost:
            return None
        for index in range(self._index(self._lost_from), len(self.transmissions)):
            one = self.transmissions[index]
            if one.lost:
                self._lost_from = one.start
                return one
        raise AssertionError("lost bytes without a lost transmission")

    def send_again(self, one: Transmission, end: int) -> Transmission:
        """`one` leaves again up to `end`; returns that part, whose times are the caller's to set."""
        if end < one.end:
            self.transmissions.insert(self._index(one.start) + 1, one.split(end))
        if one.lost:
            self.lost -= one.end - one.start
            one.lost = False
            self._lost_from = one.end
        one.retransmitted = True
        return one

    def last_segment(self, mss: int, fin: bool) -> Transmission | None:
        """The last segment sent, cut off from what left with it; None if there is none, or the far side has it.

        Args:
            fin: it has one sequence number more than bytes.
        """
        if not self.transmissions or (one := self.transmissions[-1]).sacked:
            return None
        begin = one.start + max(one.end - one.start - 1 - fin, 0) // mss * mss
        if begin > one.start:
            one = one.split(begin)
            self.transmissions.append(one)
        return one


def _start(one: Transmission) -> int:
    return one.start
