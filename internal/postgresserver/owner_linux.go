package postgresserver

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// PostgreSQL does not run as root: then its files and processes are those of the
// user that Debian's package makes.

func owner() (uid, gid int, err error) {
	postgres, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(postgres.Uid); err == nil {
		gid, err = strconv.Atoi(postgres.Gid)
	}
	return uid, gid, err
}

func giveAway(paths ...string) error {
	if os.Getuid() != 0 {
		return nil
	}
	uid, gid, err := owner()
	for _, path := range paths {
		if err == nil {
			err = os.Chown(path, uid, gid)
		}
	}
	return err
}

// asOwner has a process run as that user, and end with this one: a test that
// panics runs no cleanup. It must be started by a thread that does not end before.
func asOwner(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		return
	}
	if uid, gid, err := owner(); err == nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
}
