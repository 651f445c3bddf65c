//! Dates of the Gregorian calendar, and how the clock's registers write them.

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;

/// A date and time as the registers have it, in binary. Any values are representable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) century: u8,
    /// Of the century.
    pub(super) year: u8,
    /// From 1.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Date {
    /// The date so many seconds after the beginning of 1970.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years that begin in March have their leap day at the end; 400 of them are 146097 days.
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + i64::from(month <= 2);
        Self {
            century: year.div_euclid(100) as u8,
            year: year.rem_euclid(100) as u8,
            month: month as u8,
            day: day as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since the beginning of 1970. What is beyond its range, such as a 31st of April, runs over into the next
    /// larger unit.
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month) - 1;
        let year = i64::from(self.century) * 100 + i64::from(self.year) + month.div_euclid(12);
        let month = month.rem_euclid(12);
        // Months are counted from March, as above.
        let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let day = 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let days = era * 146_097 + day - 719_468;
        days * DAY + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// The day of the week, Sunday being 1.
    pub(super) fn weekday(self) -> u8 {
        // The first of January 1970 was a Thursday.
        (self.to_seconds().div_euclid(DAY) + 4).rem_euclid(7) as u8 + 1
    }
}

/// How the registers write numbers (register B).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// Binary rather than two decimal digits.
    pub(super) binary: bool,
    /// Hours 0 to 23 rather than 1 to 12 with bit 7 for the afternoon.
    pub(super) hours_24: bool,
}

impl Format {
    pub(super) const fn encode(self, value: u8) -> u8 {
        if self.binary { value } else { value / 10 % 10 * 16 + value % 10 }
    }

    pub(super) const fn decode(self, register: u8) -> u8 {
        if self.binary { register } else { (register >> 4) * 10 + (register & 0xF) }
    }

    pub(super) const fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    pub(super) const fn decode_hour(self, register: u8) -> u8 {
        if self.hours_24 {
            return self.decode(register);
        }
        self.decode(register & 0x7F) % 12 + if register & 0x80 != 0 { 12 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, century, year, month, day, weekday) in [
            (0, 19, 70, 1, 1, 5),
            (951_782_400, 20, 0, 2, 29, 3),
            (951_868_800, 20, 0, 3, 1, 4),
            (4_107_542_400, 21, 0, 3, 1, 2),
            (-86_400, 19, 69, 12, 31, 4),
            (1_763_942_399, 20, 25, 11, 23, 1),
        ] {
            let date = Date::from_seconds(seconds);
            assert_eq!((date.century, date.year, date.month, date.day), (century, year, month, day));
            assert_eq!(date.weekday(), weekday, "{seconds}");
        }
        let date = Date::from_seconds(1_763_942_399);
        assert_eq!((date.hour, date.minute, date.second), (23, 59, 59));
    }

    #[test]
    fn hours_have_two_forms() {
        let twelve = Format { binary: false, hours_24: false };
        for (hour, register) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            assert_eq!((twelve.encode_hour(hour), twelve.decode_hour(register)), (register, hour));
        }
    }

    proptest! {
        #[test]
        fn dates_and_seconds_correspond(seconds in -60_000_000_000..500_000_000_000_i64) {
            prop_assert_eq!(Date::from_seconds(seconds).to_seconds(), seconds);
        }

        #[test]
        fn numbers_come_back(binary: bool, hours_24: bool, hour in 0..24_u8, value in 0..100_u8) {
            let format = Format { binary, hours_24 };
            prop_assert_eq!(format.decode(format.encode(value)), value);
            prop_assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
        }
    }
}
