/* What the attacks on files try to put in the place of a judged program: it exits with 66. */
int main(void)
{
    return 66;
}
