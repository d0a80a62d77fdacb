# shellcheck shell=sh
# A prompt which nothing else prints, and lines wide enough that the shell never wraps what a test sends.
export PS1='arm-pmem:# '
case $(tty) in
/dev/tty[A-Z]* | /dev/console) stty cols 1000 rows 60 ;;
esac
