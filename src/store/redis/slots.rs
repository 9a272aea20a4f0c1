//! Hash slots: which part of a cluster has a key.

use redis::{Arg, Cmd};

/// How many hash slots a cluster has.
pub(super) const SLOTS: usize = 16_384;

/// Returns the slot of a key that has no braces: an entry key, and with it all keys of its customer.
pub(super) fn slot_of(key: &[u8]) -> usize {
    usize::from(crc16(key)) % SLOTS
}

/// Returns the slot of a command; `None` if it names no key.
///
/// The first key of every command of the store is the entry key: it follows the command's name, or the script and the
/// number of keys.
pub(super) fn slot_of_command(cmd: &Cmd) -> Option<usize> {
    let mut words = cmd.args_iter().map(|arg| if let Arg::Simple(word) = arg { word } else { &[] });
    let is_script = matches!(words.next(), Some(b"EVAL" | b"EVALSHA"));
    words.nth(if is_script { 2 } else { 0 }).map(slot_of)
}

/// Computes CRC-16/XMODEM, which maps keys to slots. The library does not export its own.
fn crc16(bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let carry = crc & 0x8000 != 0;
            (crc << 1) ^ if carry { POLYNOMIAL } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use redis::cluster_routing::Slot;

    use super::*;

    #[test]
    fn slots_are_those_of_the_client_library() {
        for n in 0..1_000 {
            let key = format!("cust:profile:10001:{n:032x}");
            let slot = u16::try_from(slot_of(key.as_bytes())).unwrap();
            assert_eq!(Slot::new(slot), Some(Slot::for_key(&key)), "{key}");
        }
    }

    #[test]
    fn the_slot_of_a_command_is_that_of_its_first_key() {
        let (key, slot) = ("cust:profile:10001:ada", Some(slot_of(b"cust:profile:10001:ada")));
        let mut script = redis::cmd("EVALSHA");
        script.arg("5c0e").arg(1).arg(key).arg("an argument");
        let mut read = redis::cmd("GET");
        read.arg(key);
        assert_eq!([slot_of_command(&script), slot_of_command(&read)], [slot, slot]);
        assert_eq!(slot_of_command(&redis::cmd("PING")), None);
    }
}
