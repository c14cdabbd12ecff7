"""Several processes as one training: who they are, how they find each other, and what is shared between them."""
