//! Network interfaces: `ioctl(2)` on a socket.
