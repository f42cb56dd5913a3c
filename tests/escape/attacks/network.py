IPV6 = "::1"
INTERNET = ["default"]
NO_SOCKETS = ("ENOSYS", "EAFNOSUPPORT")


def pair():
    return socket.socketpair()


@test
def interfaces():
    def names():
        return {line.split(":")[0].strip() for line in read("/proc/self/net/dev").decode().splitlines() if ":" in line}

    denied("find an interface besides the loopback", lambda: names() - {"lo"}, "nothing")
    for name, family, address in [
        ("the metadata service", socket.AF_INET, ("169.254.169.254", 80)), ("a name server", socket.AF_INET, ("8.8.8.8", 53)),
        ("a private network", socket.AF_INET, ("10.0.0.1", 80)), ("the metadata service by IPv6", socket.AF_INET6, ("fd00:ec2::254", 80)),
        ("a multicast group", socket.AF_INET, ("224.0.0.251", 5353)),
    ]:
        for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM]:
            denied(f"connect to {name}, {kind.name}", lambda: connected(family, address, kind), "ENETUNREACH", "EADDRNOTAVAIL", *NO_SOCKETS)
    for request, name in [(0x8914, "bring an interface up"), (0x8916, "give one an address"), (0x890b, "add a route"), (0x89a0, "make a bridge"), (0x400454ca, "make a tunnel")]:
        denied(name, lambda: fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), request, bytearray(b"lo" + bytes(78))), "EPERM", "ENODEV", "ENOTTY", *NO_SOCKETS)

    def looped():
        server = socket.create_server(("127.0.0.1", 0))
        connected(socket.AF_INET, server.getsockname())

    allowed("connect over an own loopback", looped, INTERNET)
    allowed("connect a pair", lambda: pair() and None)


@test
def multipath_tcp():
    for family in [socket.AF_INET, socket.AF_INET6]:
        denied(f"make one, {family.name}", lambda: call("socket", family, 1, 262) and None, "EPROTONOSUPPORT", "ENOSYS")
    denied("with flags", lambda: call("socket", 2, 1 | 0o2000000, 262) and None, "EPROTONOSUPPORT", "ENOSYS")
    denied("with bits above", lambda: call("socket", 2 | 1 << 40, 1, 262 | 1 << 40) and None, "EPROTONOSUPPORT", "ENOSYS")
    allowed("make one of plain TCP", lambda: call("socket", 2, 1, 6) and None, INTERNET)
    allowed("make a pair", lambda: pair() and None)


@test
def fast_open():
    flag, text = 0x20000000, ctypes.create_string_buffer(b"x")
    address = ctypes.create_string_buffer(struct.pack("!BB", 2, 0)[::1] + struct.pack("!H4s8x", 47111, b"\x7f\0\0\1"))
    message = ctypes.create_string_buffer(56)
    ends = pair()
    made = ends[0].fileno()
    denied("sendto", lambda: call("sendto", made, text, 1, flag, address, 16) and None, "EOPNOTSUPP")
    denied("sendto with bits above", lambda: call("sendto", made, text, 1, flag | 1 << 40, address, 16) and None, "EOPNOTSUPP")
    denied("sendmsg", lambda: call("sendmsg", made, message, flag) and None, "EOPNOTSUPP")
    denied("sendmmsg", lambda: call("sendmmsg", made, message, 1, flag) and None, "EOPNOTSUPP", "ENOSYS")
    allowed("sendto without", lambda: call("sendto", made, text, 1, 0, None, 0) and None)


@test
def socket_families():
    def made(families, kinds, protocols):
        found = []
        for family in families:
            for kind in kinds:
                for protocol in protocols:
                    try:
                        os.close(call("socket", family, kind, protocol))
                        found.append((family, kind, protocol))
                    except OSError as error:
                        if error.errno not in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE):
                            found.append((family, kind, protocol, error.errno))
        return found

    others = [family for family in range(64) if family not in (1, 2, 10, 16)]
    denied("any family but three and netlink", lambda: made(others, [1, 2, 3, 4, 5, 6, 10], [0]), "nothing")
    denied("the same with bits above", lambda: made([1 << 32 | family for family in others], [1, 2, 3], [0]), "nothing")
    denied("the internet's with other types", lambda: made([2, 10], [3, 4, 5, 6, 10], [0, 1, 6, 17, 255]), "nothing")
    denied("the internet's with other protocols", lambda: made([2, 10], [1, 2], [1, 2, 33, 50, 51, 58, 132, 136, 255, 262]), "nothing")
    denied("netlink but of routes", lambda: made([16], [2, 3], range(1, 32)), "nothing")
    denied("pairs of other families", lambda: [family for family in others if word_of(lambda: call("socketpair", family, 1, 0, ctypes.create_string_buffer(8))) != "EAFNOSUPPORT"], "nothing")
    for family in ["AF_INET", "AF_INET6", "AF_UNIX"]:
        allowed(f"a stream of {family}", lambda: socket.socket(getattr(socket, family)).close(), INTERNET)
    allowed("a pair", lambda: pair() and None)


@test
def socket_options():
    def option(level, name, value=b"tls\0\0\0\0\0"):
        made = pair()[0] if POLICY == "strict" else socket.socket()
        call("setsockopt", made.fileno(), level, name, value, len(value))

    for name, level, number in [("TCP_ULP", 6, 31), ("TCP_REPAIR", 6, 19), ("SO_ATTACH_BPF", 1, 50), ("SO_ATTACH_REUSEPORT_CBPF", 1, 51),
                                ("SO_ATTACH_REUSEPORT_EBPF", 1, 52), ("SO_TXTIME", 1, 61), ("IP_IPSEC_POLICY", 0, 16), ("IP_XFRM_POLICY", 0, 17),
                                ("IPV6_IPSEC_POLICY", 41, 34), ("IPV6_XFRM_POLICY", 41, 35)]:
        denied(name, lambda: option(level, number), "EPERM")
        denied(f"{name} with bits above", lambda: option(level | 1 << 40, number | 1 << 40), "EPERM")
    denied("TCP_ULP espintcp", lambda: option(6, 31, b"espintcp"), "EPERM")
    denied("SO_BINDTODEVICE to none of its own", lambda: option(1, 25, b"eth0\0"), "EPERM", "ENODEV", "ENOPROTOOPT", "EOPNOTSUPP")
    for name, number in [("SO_MARK", 36), ("SO_RCVBUFFORCE", 33), ("SO_DEBUG", 1)]:
        denied(name, lambda: option(1, number, struct.pack("i", 1)), "EPERM", "EACCES")
    allowed("SO_RCVBUF", lambda: option(1, 8, struct.pack("i", 4096)))


@test
def host_sockets():
    def found():
        tops = [top for top in os.listdir("/") if top not in ("proc", "usr", "lib", "opt")]
        return [f"{path}/{name}" for top in tops for path, _, names in os.walk(f"/{top}") for name in names
                if stat.S_ISSOCK(os.lstat(f"{path}/{name}").st_mode)]

    denied("find a socket in the file system", found, "nothing")
    for path in ["/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket", "/run/systemd/notify",
                 "/run/systemd/private", "/run/systemd/journal/socket", "/run/user/0/bus", "/tmp/.X11-unix/X0", "/dev/log", "/run/trl/trl.sock"]:
        denied(f"connect to {path}", lambda: connected(socket.AF_UNIX, path), "ENOENT", "ENOSYS")
    for name in ["@/tmp/.X11-unix/X0", "@/containerd-shim", "@/org/freedesktop/systemd1/notify"]:
        denied(f"connect to {name}", lambda: connected(socket.AF_UNIX, "\0" + name[1:]), "ECONNREFUSED", "ENOSYS", "EPERM")

    def connects():
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{SCRATCH}/own.sock")
            server.listen()
            connected(socket.AF_UNIX, f"{SCRATCH}/own.sock")
            os.unlink(f"{SCRATCH}/own.sock")

    allowed("connect to an own one", connects, INTERNET)
    ends = pair()
    allowed("talk over a pair", lambda: ends[0].send(b"x") == 1)


@test
def control_socket():
    for name in ["trl.sock", "trl.sock.lock", "idempotency-keys", ""]:
        denied(f"see the supervisor's {name or 'directory'}", lambda: os.stat(f"{GIVEN['runtime']}/{name}") and None, "ENOENT", l1=name in ("trl.sock", ""))
    denied("connect to the supervisor", lambda: connected(socket.AF_UNIX, f"{GIVEN['runtime']}/trl.sock"), "ENOENT", "ENOSYS", l1=True)
    denied("find its directory by what is mounted", lambda: GIVEN["home"] in read("/proc/self/mountinfo").decode(), "nothing")
    ends = pair()
    allowed("talk over a pair", lambda: ends[0].send(b"x") == 1)


@test
def descriptors_from_outside():
    for number in [0, 1, 2]:
        denied(f"receive from stream {number}", lambda: call("recvmsg", number, ctypes.create_string_buffer(56), 0x40), "ENOTSOCK")
    denied("receive from the supervisor's descriptor", lambda: call("recvmsg", 7, ctypes.create_string_buffer(56), 0x40), "EBADF")
    denied("find a socket among the own descriptors", lambda: [number for number in OPEN_AT_START
           if os.path.exists(f"/proc/self/fd/{number}") and stat.S_ISSOCK(os.fstat(number).st_mode)], "nothing")

    def handed():
        one, two = pair()
        socket.send_fds(one, [b"x"], [0])
        return len(socket.recv_fds(two, 1, 1)[1]) == 1

    allowed("hand one to oneself", handed)
