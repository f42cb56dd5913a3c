//! Landlock: what paths, ports and peers a session reaches.
