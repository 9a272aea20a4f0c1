//! A table that knows its size: each insertion and removal updates the numbers of rows and bytes.

use redb::{AccessGuard, ReadableTable, Table, TableDefinition, Value, WriteTransaction};

/// The size of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableSize {
    /// The number of rows.
    pub(super) rows: u64,
    /// The bytes of their values, as [`Measured`] counts them.
    pub(super) bytes: u64,
    /// The key after the last one. It never decreases while the table is open.
    pub(super) next: u64,
}

/// A value whose bytes count.
pub(super) trait Measured: Value + 'static {
    /// Returns the number of bytes.
    fn bytes(value: &Self::SelfType<'_>) -> u64;
}

impl Measured for &'static [u8] {
    fn bytes(value: &Self::SelfType<'_>) -> u64 {
        value.len() as u64
    }
}

impl TableSize {
    /// Measures a table. Reads every row.
    pub(super) fn of<V: Measured>(table: &impl ReadableTable<u64, V>) -> Result<Self, redb::Error> {
        let mut bytes = 0;
        for row in table.iter()? {
            bytes += V::bytes(&row?.1.value());
        }
        let next = table.last()?.map_or(0, |(last, _)| last.value() + 1);
        Ok(Self { rows: table.len()?, bytes, next })
    }
}

/// A table, open for writing, and its size.
pub(super) struct SizedTable<'t, V: Measured> {
    table: Table<'t, u64, V>,
    size: TableSize,
}

impl<'t, V: Measured> SizedTable<'t, V> {
    /// Opens a table of this size; creates it if it does not exist.
    pub(super) fn open(
        txn: &'t WriteTransaction,
        definition: TableDefinition<'_, u64, V>,
        size: TableSize,
    ) -> Result<Self, redb::Error> {
        Ok(Self { table: txn.open_table(definition)?, size })
    }

    /// Returns the table, for reading.
    pub(super) const fn rows(&self) -> &Table<'t, u64, V> {
        &self.table
    }

    /// Returns the size, with the changes of this transaction.
    pub(super) const fn size(&self) -> TableSize {
        self.size
    }

    /// Inserts a value at the next key.
    pub(super) fn push(&mut self, value: V::SelfType<'_>) -> Result<(), redb::Error> {
        self.insert(self.size.next, value)
    }

    /// Inserts a value at a key that is not in use.
    pub(super) fn insert(&mut self, key: u64, value: V::SelfType<'_>) -> Result<(), redb::Error> {
        let bytes = V::bytes(&value);
        let replaced = self.table.insert(key, value)?.map(|replaced| V::bytes(&replaced.value()));
        self.size.rows += u64::from(replaced.is_none());
        self.size.bytes = self.size.bytes + bytes - replaced.unwrap_or(0);
        self.size.next = self.size.next.max(key + 1);
        Ok(())
    }

    /// Removes a row and returns its value; `None` if there is none.
    pub(super) fn remove(&mut self, key: u64) -> Result<Option<AccessGuard<'_, V>>, redb::Error> {
        let Some(removed) = self.table.remove(key)? else { return Ok(None) };
        self.size.rows -= 1;
        self.size.bytes -= V::bytes(&removed.value());
        Ok(Some(removed))
    }
}
