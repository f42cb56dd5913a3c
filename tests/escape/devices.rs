//! Devices, and what the kernel shows and takes by files.

use crate::suite::{Suite, tests};

static DEVICES: Suite = Suite::new(include_str!("attacks/devices.py"));

tests! { DEVICES:
    device_nodes
    kernel_knobs
    kernel_information
    control_groups
}
