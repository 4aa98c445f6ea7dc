"""C-SGD (paper 001): filters that become equal while they train."""
