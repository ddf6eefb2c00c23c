# What ichd's grub.cfg uses beyond the default modules: a pattern for the disk, terminals, a reboot.
GRUB_BUILDIN:append:ichd-appliance = " reboot regexp terminal"
