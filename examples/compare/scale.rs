//! How much there is to do.

/// The sizes of layers and workloads.
#[derive(Debug)]
pub struct Scale {
    /// The directories of the small files.
    pub directories: usize,
    /// The size of the large file in MiB, a power of two.
    pub large: usize,
    /// The directories in which a workload has files of its own, when it measures one operation.
    pub sample: usize,
    /// The same, when it measures what many files cost together.
    pub many: usize,
    /// How often something is repeated that can be.
    pub passes: usize,
    /// How many blocks of 4 KiB are read in random order, a power of two, or appended.
    pub blocks: usize,
    /// The most names in one directory.
    pub names: usize,
    /// The directories of the source tree.
    pub modules: usize,
    /// The files of the program that is compiled.
    pub units: usize,
    /// The modules that a Python program imports.
    pub imports: usize,
    /// The updates of a database.
    pub updates: usize,
}

/// What is measured where nothing else is said.
pub const FULL: Scale = Scale {
    directories: 200,
    large: 256,
    sample: 10,
    many: 100,
    passes: 20,
    blocks: 8192,
    names: 100_000,
    modules: 100,
    units: 40,
    imports: 300,
    updates: 200,
};

/// Shows that everything works; the numbers say little.
pub const QUICK: Scale = Scale {
    directories: 25,
    large: 16,
    sample: 3,
    many: 25,
    passes: 3,
    blocks: 1024,
    names: 1_000,
    modules: 10,
    units: 5,
    imports: 40,
    updates: 20,
};
