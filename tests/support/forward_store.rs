//! Macros for stores that wrap another store.

/// Implements methods of `Store` by calling the same method of a field.
macro_rules! forward_store {
    ($field:ident: $($method:ident)*) => { $(forward_store!(@ $method $field);)* };
    (@ url $field:ident) => {
        fn url(&self) -> &str {
            self.$field.url()
        }
    };
    (@ is_remote $field:ident) => {
        fn is_remote(&self) -> bool {
            self.$field.is_remote()
        }
    };
    (@ place $field:ident) => {
        fn place(&self, key: &str) -> String {
            self.$field.place(key)
        }
    };
    (@ blocking_file $field:ident) => {
        fn blocking_file(&self, key: &str) -> Option<String> {
            self.$field.blocking_file(key)
        }
    };
    (@ write $field:ident) => { forward_store!(@@ write(key: &str, bytes: &[u8]) -> (), $field); };
    (@ remove $field:ident) => { forward_store!(@@ remove(key: &str) -> (), $field); };
    (@ list $field:ident) => { forward_store!(@@ list(prefix: &str) -> Vec<String>, $field); };
    (@ sync $field:ident) => {
        forward_store!(@@ sync(keys: &mut dyn Iterator<Item = String>) -> (), $field);
    };
    (@ remove_partial_writes $field:ident) => {
        forward_store!(@@ remove_partial_writes(prefix: &str) -> (), $field);
    };
    (@ lock $field:ident) => {
        forward_store!(@@ lock(key: &str) -> Option<freestone_engine::storage::Lock>, $field);
    };
    (@ is_locked $field:ident) => { forward_store!(@@ is_locked(key: &str) -> bool, $field); };
    (@ size $field:ident) => { forward_store!(@@ size(key: &str) -> Option<u64>, $field); };
    (@ modified $field:ident) => {
        forward_store!(@@ modified(key: &str) -> Option<std::time::SystemTime>, $field);
    };
    (@@ $method:ident($($argument:ident: $type:ty),*) -> $result:ty, $field:ident) => {
        fn $method(
            &self,
            $($argument: $type),*
        ) -> Result<$result, freestone_engine::storage::StorageError> {
            self.$field.$method($($argument),*)
        }
    };
}

/// Implements reads and writes of an object's parts by `read` and `write`.
macro_rules! parts_by_whole_objects {
    () => {
        fn read_parts(
            &self,
            key: &str,
            _size: u64,
            parts: &[freestone_engine::storage::ObjectPart],
            into: &mut [u8],
        ) -> Result<freestone_engine::storage::PartsRead, freestone_engine::storage::StorageError> {
            freestone_engine::storage::read_each(self, key, parts, into)
        }

        fn write_parts(
            &self,
            key: &str,
            parts: &[&[u8]],
        ) -> Result<(), freestone_engine::storage::StorageError> {
            self.write(key, &parts.concat())
        }
    };
}

/// Implements `begin_read` of a store that starts no read before it is waited for.
macro_rules! no_read_ahead {
    () => {
        fn begin_read(
            &self,
            _key: &str,
            _range: Option<freestone_engine::storage::ByteRange>,
            _limit: u64,
            _admit: freestone_engine::storage::Admit,
        ) -> Option<freestone_engine::storage::PendingRead> {
            None
        }
    };
}

/// Implements `begin_shared_write` of a store that starts no write before it is waited for.
macro_rules! no_shared_writes {
    () => {
        fn begin_shared_write(
            &self,
            _key: &str,
            _bytes: &freestone_engine::storage::SharedBytes,
        ) -> Option<freestone_engine::storage::PendingWrite> {
            None
        }
    };
}
