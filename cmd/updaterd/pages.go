package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
)

// dropPages gives back the pages of the program file that only its start needed: the
// kernel maps them generously, and takes them away late. Those that are needed
// again come from its cache, without a disk. Nothing depends on it, and where it
// does not work, nothing changes. docs/performance.md has what it saves.
func dropPages() {
	if !builtInPlace() {
		return
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !bytes.Contains(status, []byte("TracerPid:\t0\n")) {
		return // the breakpoints of a debugger are in such pages
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		var may string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &may); err != nil {
			continue
		}
		// What may be written is data, and gone when it is dropped. So is what was
		// relocated at the start, but only where builtInPlace says no.
		if strings.Contains(may, "w") || strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]) != program {
			continue
		}
		_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, from, to-from, syscall.MADV_DONTNEED)
	}
}

// builtInPlace reports whether the program runs at the addresses that it was linked
// for. In one that does not (-buildmode=pie), the start writes addresses into pages
// that can only be read afterwards, and dropping these would end it.
func builtInPlace() bool {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return false
	}
	for _, s := range info.Settings {
		if s.Key == "-buildmode" {
			return s.Value == "exe"
		}
	}
	return false
}
