//! Sockets, and what there is to connect to.

use crate::suite::{Suite, tests};

static NETWORK: Suite = Suite::new(include_str!("attacks/network.py"));

tests! { NETWORK:
    interfaces
    multipath_tcp
    fast_open
    socket_families
    socket_options
    host_sockets
    control_socket
    descriptors_from_outside
}
